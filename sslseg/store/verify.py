"""Proof that a store is complete and undamaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sslseg.errors import UserError
from sslseg.progress import track
from sslseg.store.format import ENCODING_VERSION, IMAGE_SCORE, IMAGE_SCORES, LISTS, MASKS, Digest
from sslseg.store.reader import StoreReader


def verify_store(path: Path) -> dict[str, Any]:
    """Read every map of a store and return a summary: ids, kinds, bytes, the fraction of ignored pixels.

    Raises:
        UserError: naming the first thing that is wrong.
    """
    store = StoreReader(path)
    store.check_encodings()
    _check_structure(store)
    digest, pixels, ignored = Digest(), 0, 0
    for name in track(store.ids, "verify", total=len(store)):
        maps = {kind: store.stored(kind, name) for kind in sorted(store.kinds)}
        _check_maps(store, name, maps)
        pixels, ignored = pixels + maps[MASKS].size, ignored + int((maps[MASKS] == store.ignore_index).sum())
        for kind, array in maps.items():
            digest.add(name, kind, array)
    digest.add_image_scores(store.image_score_arrays())
    if digest.hexdigest() != store.content_sha256:
        raise UserError(
            f"store {path} was changed or damaged: its content differs from its content_sha256; recreate it"
        )
    size = path.stat().st_size
    return dict(
        ids=len(store),
        kinds=list(store.kinds),
        **(dict(image_scores=list(store.image_scores)) if store.image_scores else {}),
        classes=len(store.classes),
        shard=store.shard,
        bytes=size,
        bytes_per_id=round(size / max(len(store), 1)),
        ignored_share=round(ignored / max(pixels, 1), 6),
        content_sha256=store.content_sha256,
    )


def _check_structure(store: StoreReader) -> None:
    if len(set(store.ids)) != len(store.ids):
        raise UserError(f"store {store.path} is damaged: an id occurs twice; recreate it")
    elements = LISTS | {name: kind.encoding for name, kind in store.kinds.items()}
    elements |= {f"{IMAGE_SCORES}/{name}": IMAGE_SCORE for name in store.image_scores}
    for element, encoding in elements.items():
        found, version = store.attribute(element, "encoding_type"), store.attribute(element, "encoding_version")
        if (found, version) != (encoding, ENCODING_VERSION):
            raise UserError(
                f"store {store.path} is damaged: /{element} says it is {found!r}, version {version}, not"
                f" {encoding!r}, version {ENCODING_VERSION}; recreate it"
            )
    for kind in store.kinds:
        odd = sorted(set(store.ids) ^ set(store.maps(kind).values()))
        if odd:
            raise UserError(
                f"store {store.path} is damaged: {odd[0]!r} is only in one of /ids and /{kind}; recreate it"
            )


def _check_maps(store: StoreReader, name: str, maps: dict[str, np.ndarray]) -> None:
    mask = maps[MASKS]
    for kind, array in maps.items():
        wide = store.kinds[kind].is_score or store.ignore_index > np.iinfo(np.uint8).max
        wanted = np.uint16 if wide else np.uint8
        if array.dtype != wanted:
            raise UserError(
                f"store {store.path} is damaged: {kind}/{name} is {array.dtype}, not {wanted.__name__}; recreate it"
            )
        if array.ndim != 2 or array.shape != mask.shape:
            raise UserError(
                f"store {store.path} is damaged: {kind}/{name} is {array.shape}, the mask {mask.shape}; recreate it"
            )
    for kind, labels in maps.items():
        if store.kinds[kind].is_score:
            continue
        wrong = labels[(labels >= len(store.classes)) & (labels != store.ignore_index)]
        if wrong.size:
            raise UserError(
                f"store {store.path} is damaged: {kind}/{name} holds {wrong[0]}, which is not a class index below"
                f" {len(store.classes)}; recreate it"
            )
