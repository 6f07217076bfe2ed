"""Joining the shards of a store."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sslseg.errors import IncompatibleError, UserError
from sslseg.progress import track
from sslseg.store.reader import StoreReader
from sslseg.store.writer import Maps, write_store


def merge_stores(paths: Sequence[Path], out: Path) -> Path:
    """Join shards into the store that one process would have written, and return its path.

    Stores may overlap where their content is equal.

    Raises:
        UserError: ``out`` exists, a shard is missing or has an unknown encoding, or two stores differ in an id.
        IncompatibleError: the shards come from different models, splits or settings.
    """
    if out.exists():
        raise UserError(f"store {out} exists; write another with --out, or remove it")
    stores = [StoreReader(path) for path in paths]
    for store in stores:
        store.check_encodings()
    first = stores[0]
    for store in stores[1:]:
        differing = first.header.difference(store.header, but=("shard",))
        if differing is None and store.kinds != first.kinds:
            differing = "kinds"
        if differing is None and store.image_scores.keys() != first.image_scores.keys():
            differing = "image_scores"
        if differing:
            raise IncompatibleError(
                f"stores {first.path} and {store.path} differ in {differing}; merge shards of one command only"
            )
    places = _places(stores)
    ordered = [(*places[position], position) for position in sorted(places)]

    def maps() -> Iterator[tuple[str, Maps]]:
        for store, name, _ in track(ordered, "merge", total=len(ordered)):
            yield name, {kind: store.encoded(kind, name) for kind in store.kinds}

    header = dataclasses.replace(first.header, shard="0/1")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    names, positions = [name for _, name, _ in ordered], [position for *_, position in ordered]
    write_store(
        out,
        header,
        names,
        positions,
        first.kinds,
        maps(),
        image_scores={
            score: np.array([store.image_scores[score][name] for store, name, _ in ordered], np.float32)
            for score in first.image_scores
        },
        temporary=temporary,
    )
    return out


def _places(stores: list[StoreReader]) -> dict[int, tuple[StoreReader, str]]:
    """Return the store and the id at each position; raise UserError unless every position has one."""
    places: dict[int, tuple[StoreReader, str]] = {}
    for store in stores:
        for position, name in zip(store.positions.tolist(), store.ids, strict=True):
            other, same = places.setdefault(position, (store, name))
            if name != same or not (other is store or _equal(store, other, name)):
                raise UserError(
                    f"{other.path} and {store.path} differ in id {name!r}; merge shards of one command only"
                )
    total = stores[0].header.total
    if len(places) != total:
        count = max(int(store.shard.split("/")[1]) for store in stores)
        present = {int(store.shard.split("/")[0]) for store in stores}
        absent = ", ".join(f"{number}/{count}" for number in range(count) if number not in present)
        raise UserError(f"{total - len(places)} of {total} ids are missing; add the shards {absent or 'left out'}")
    if len({name for _, name in places.values()}) != total:
        raise UserError(f"an id of {stores[0].path} has two positions; merge shards of one command only")
    return places


def _equal(store: StoreReader, other: StoreReader, name: str) -> bool:
    return all(np.array_equal(store.stored(kind, name), other.stored(kind, name)) for kind in store.kinds) and all(
        values[name] == other.image_scores[score][name] for score, values in store.image_scores.items()
    )
