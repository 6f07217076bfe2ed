"""Proving that a store is what it says, and joining the shards of one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sslseg.errors import IncompatibleError, UserError
from sslseg.progress import track
from sslseg.store.format import ENCODING_VERSION, ENCODINGS, LABEL_KINDS, MASKS, Digest
from sslseg.store.reader import StoreReader
from sslseg.store.writer import Maps, write_store


def verify_store(path: Path) -> dict[str, Any]:
    """Read every map of a store and return a summary: ids, kinds, bytes, the share of ignored pixels.

    Raises:
        UserError: naming the first thing that is wrong.
    """
    store = StoreReader(path)
    _check_structure(store)
    digest, pixels, ignored = Digest(), 0, 0
    for name in track(store.ids, "verify", total=len(store)):
        maps = {kind: store.stored(kind, name) for kind in sorted(store.kinds)}
        _check_maps(store, name, maps)
        pixels, ignored = pixels + maps[MASKS].size, ignored + int((maps[MASKS] == store.ignore_index).sum())
        for kind, array in maps.items():
            digest.add(name, kind, array)
    if digest.hexdigest() != store.content_sha256:
        raise UserError(
            f"store {path} was changed or damaged: its content is not what its content_sha256 says; make it anew"
        )
    size = path.stat().st_size
    return dict(
        ids=len(store),
        kinds=list(store.kinds),
        classes=len(store.classes),
        shard=store.shard,
        bytes=size,
        bytes_per_id=round(size / max(len(store), 1)),
        ignored_share=round(ignored / max(pixels, 1), 6),
        content_sha256=store.content_sha256,
    )


def _check_structure(store: StoreReader) -> None:
    if len(set(store.ids)) != len(store.ids):
        raise UserError(f"store {store.path} is damaged: an id occurs twice; make it anew")
    for element in ("ids", "positions", *store.kinds):
        told = store.attribute(element, "encoding_type"), store.attribute(element, "encoding_version")
        if told != (ENCODINGS[element], ENCODING_VERSION):
            raise UserError(
                f"store {store.path} is damaged: /{element} says it is {told[0]!r}, version {told[1]}, not"
                f" {ENCODINGS[element]!r}, version {ENCODING_VERSION}; make it anew"
            )
    for kind in store.kinds:
        odd = sorted(set(store.ids) ^ set(store.maps(kind).values()))
        if odd:
            raise UserError(
                f"store {store.path} is damaged: {odd[0]!r} is only in one of /ids and /{kind}; make it anew"
            )


def _check_maps(store: StoreReader, name: str, maps: dict[str, np.ndarray]) -> None:
    mask = maps[MASKS]
    for kind, array in maps.items():
        wanted = np.uint8 if kind in LABEL_KINDS and store.ignore_index <= np.iinfo(np.uint8).max else np.uint16
        if array.dtype != wanted:
            raise UserError(
                f"store {store.path} is damaged: {kind}/{name} is {array.dtype}, not {wanted.__name__}; make it anew"
            )
        if array.ndim != 2 or array.shape != mask.shape:
            raise UserError(
                f"store {store.path} is damaged: {kind}/{name} is {array.shape}, the mask {mask.shape}; make it anew"
            )
    for kind, labels in maps.items():
        if kind not in LABEL_KINDS:
            continue
        wrong = labels[(labels >= len(store.classes)) & (labels != store.ignore_index)]
        if wrong.size:
            raise UserError(
                f"store {store.path} is damaged: {kind}/{name} holds {wrong[0]}, which is no class index below"
                f" {len(store.classes)}; make it anew"
            )


def merge_stores(paths: Sequence[Path], out: Path) -> Path:
    """Join shards into the store that one process would have written, and return its path.

    Stores may overlap where their content is equal.

    Raises:
        UserError: ``out`` exists, a shard is missing, or two stores differ in an id.
        IncompatibleError: the shards come from different models, splits or settings.
    """
    if out.exists():
        raise UserError(f"store {out} exists; write another with --out, or remove it")
    stores = [StoreReader(path) for path in paths]
    first = stores[0]
    for store in stores[1:]:
        differing = first.header.difference(store.header, but=("shard",))
        if differing is None and store.kinds != first.kinds:
            differing = "kinds"
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
    write_store(out, header, names, positions, first.kinds, maps(), temporary=temporary)
    return out


def _places(stores: list[StoreReader]) -> dict[int, tuple[StoreReader, str]]:
    """Return the store and the id at each position; raise UserError unless they are one whole."""
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
    return all(np.array_equal(store.stored(kind, name), other.stored(kind, name)) for kind in store.kinds)
