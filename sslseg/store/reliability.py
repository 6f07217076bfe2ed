"""Marks of unreliable pixels in a store: a second set of masks, in which these pixels have no class.

A pixel is unreliable if its entropy is not below a percentile of all pixels of all images of the store.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sslseg.progress import note, track
from sslseg.store.filters import Filter, resolve
from sslseg.store.format import LABEL_MAP, RELIABLE
from sslseg.store.reader import StoreReader
from sslseg.store.writer import Maps, write_store

PERCENTILE = re.compile(r"q([0-9]+(?:\.[0-9]+)?)")


def mark_reliable(path: Path, percentile: str) -> None:
    """Add ``reliable_masks`` to the store at ``path``, or replace them; other maps are copied unchanged.

    Args:
        percentile: such as ``q80``; pixels whose entropy is not below it get ``ignore_index``.

    Raises:
        UserError: the store has no entropy or an unknown encoding, or nothing would be left.
    """
    store = StoreReader(path)
    store.check_encodings()
    provenance = store.provenance
    text = f"entropy<{percentile}"
    if provenance.get("reliable", {}).get("keep") == text:
        return
    (reliable,) = resolve([text], store, option="--reliability")
    note(f"{reliable.share:.1%} of the pixels are reliable: entropy below {reliable.threshold:.4f} ({percentile})")
    header = replace(
        store.header, provenance=json.dumps(provenance | dict(reliable=reliable.to_dict()), sort_keys=True)
    )
    temporary = path.with_name(f".{path.name}.tmp")
    positions = [int(position) for position in store.positions]
    kinds = {**store.kinds, RELIABLE: LABEL_MAP}
    write_store(
        path,
        header,
        store.ids,
        positions,
        kinds,
        _maps(store, reliable),
        image_scores=store.image_score_arrays(),
        temporary=temporary,
    )
    store.close()


def _maps(store: StoreReader, reliable: Filter) -> Iterator[tuple[str, Maps]]:
    copied = [kind for kind in store.kinds if kind != RELIABLE]
    for name in track(store.ids, "mark", total=len(store)):
        kept = reliable.masked(store.mask(name), name, store)
        yield name, {kind: store.encoded(kind, name) for kind in copied} | {RELIABLE: kept}
