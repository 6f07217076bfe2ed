"""The published family that a labeled list belongs to: rows of different families must not be compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslseg.data.description import DatasetDescription
from sslseg.data.layouts import voc

SEEDED = "own draw"  # of a split that was not read from a list, as split.json stores it
CPS_SIXTEENTH = (93, 662)  # finely annotated images, labeled images


def family(dataset: DatasetDescription, labeled: Sequence[str], *, from_list: Path | None) -> dict[str, Any]:
    """Return the family as ``split.json`` stores it; on VOC the fraction of finely annotated images identifies it."""
    if from_list is None:
        return dict(name=SEEDED)
    fine = voc.fine_ids(dataset) if dataset.layout == "voc" else None
    if not fine:
        return dict(name="unknown", list=from_list.name)
    count = len(fine.intersection(labeled))
    if count == len(labeled):
        name = "all finely annotated (classic, or U2PL's blender lists)"
    elif (count, len(labeled)) == CPS_SIXTEENTH:
        name = "mixed annotations (CPS and UniMatch, blender 1/16)"
    else:
        name = "mixed annotations (unknown family)"
    return dict(name=name, list=from_list.name, fine=count, fine_share=round(count / len(labeled), 4))
