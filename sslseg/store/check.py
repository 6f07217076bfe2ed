"""Proving that a store is what it says, and joining the shards of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sslseg.errors import IncompatibleError, UserError
from sslseg.progress import track
from sslseg.store.format import MASKS, Digest, Encoded
from sslseg.store.reader import StoreReader
from sslseg.store.writer import write_store


def verify_store(path: Path) -> dict[str, Any]:
    """Read every map of a store and return a summary: ids, kinds, bytes, the share of ignored pixels.

    Raises:
        UserError: naming the first thing that is wrong.
    """
    store = StoreReader(path)
    if len(set(store.ids)) != len(store.ids):
        raise UserError(f"store {path} is damaged: an id occurs twice; make it anew")
    if MASKS not in store.kinds:
        raise UserError(f"store {path} is damaged: it has no masks; make it anew")
    digest, pixels, ignored = Digest(), 0, 0
    for name in track(store.ids, "verify", total=len(store)):
        shape = None
        for kind in sorted(store.kinds):
            array = store.stored(kind, name)
            if kind == MASKS:
                _check_values(store, name, array)
                pixels, ignored = pixels + array.size, ignored + int((array == store.ignore_index).sum())
            elif array.dtype != np.uint16:
                raise UserError(f"store {path} is damaged: {kind}/{name} is {array.dtype}, not uint16; make it anew")
            if shape not in (None, array.shape):
                raise UserError(f"store {path} is damaged: the maps of {name!r} differ in size; make it anew")
            shape = array.shape
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
        shard=store.header.shard,
        bytes=size,
        bytes_per_id=round(size / max(len(store), 1)),
        ignored_share=round(ignored / max(pixels, 1), 6),
        content_sha256=store.content_sha256,
    )


def _check_values(store: StoreReader, name: str, mask: np.ndarray) -> None:
    wrong = (mask >= len(store.classes)) & (mask != store.ignore_index)
    if mask.ndim != 2 or wrong.any():
        raise UserError(
            f"store {store.path} is damaged: masks/{name} holds {mask[wrong][:1]}, which is no class index below"
            f" {len(store.classes)}; make it anew"
        )


def merge_stores(paths: Sequence[Path], out: Path) -> Path:
    """Join shards into the store that one process would have written, and return its path.

    Raises:
        UserError: ``out`` exists, a shard is missing, or an id is in two shards.
        IncompatibleError: the shards come from different models, splits or settings.
    """
    if out.exists():
        raise UserError(f"store {out} exists; give another with --out, or remove it")
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
    places: dict[int, tuple[StoreReader, str]] = {}
    for store in stores:
        for position, name in zip(store.positions.tolist(), store.ids, strict=True):
            if position in places:
                raise UserError(
                    f"id {name!r} is in {places[position][0].path} and in {store.path}; merge each shard once"
                )
            places[position] = (store, name)
    if len(places) != first.header.total:
        count = max(int(store.header.shard.split("/")[1]) for store in stores)
        present = {int(store.header.shard.split("/")[0]) for store in stores}
        absent = ", ".join(f"{number}/{count}" for number in range(count) if number not in present)
        raise UserError(
            f"{first.header.total - len(places)} of {first.header.total} ids are missing; add the shards {absent or 'left out'}"
        )
    ordered = [places[position] for position in sorted(places)]

    def maps() -> Iterator[tuple[str, dict[str, Encoded | np.ndarray]]]:
        for store, name in track(ordered, "merge", total=len(ordered)):
            yield name, {kind: store.encoded(kind, name) for kind in store.kinds}

    header = type(first.header).from_dict(first.header.to_dict() | dict(shard="0/1"))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_store(out, header, [name for _, name in ordered], sorted(places), first.kinds, maps())
    return out
