"""Small datasets on disk for the tests of layouts, lists, splits and init; and stores of the present format.

``python -m tests.data.make`` writes ``store-v2.h5``, and one with scores of images. A new version of the format gets a file of its own; those of older
versions stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np

from sslseg.store import LABEL_MAP, SCORE_MAP, MapKind, StoreHeader, StoreWriter

SIZE = 8
STORE = Path(__file__).parent / "store-v2.h5"
SCORED_STORE = STORE.with_name("store-v2-image-scores.h5")
AGREEMENT = dict(agreement=[0.25, 1.0])
STORE_KINDS = {
    "masks": LABEL_MAP,
    "confidence": MapKind("score-map", high="right"),
    "doubt_maps/first": SCORE_MAP,
    "doubt_maps/second": SCORE_MAP,
    "margin": MapKind("score-map", high="right"),
    "model_masks/first": LABEL_MAP,
}


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((SIZE, SIZE, 3), 90, np.uint8))
    return path


def mask(path: Path, values: np.ndarray | int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values)
    array = np.full((SIZE, SIZE), values) if values.ndim == 0 else values
    assert cv2.imwrite(str(path), array.astype(np.uint16 if array.max() > 255 else np.uint8))
    return path


def folder(root: Path, *, train: int = 16, val: int = 4, classes: int = 3, mask_suffix: str = "") -> Path:
    """Draw a dataset in layout ``folder`` with ids t000, ... and v000, ...; every mask holds every class."""
    rng = np.random.default_rng(0)
    for side, count in (("train", train), ("val", val)):
        for index in range(count):
            name = f"{side[0]}{index:03}"
            values = rng.permutation(np.arange(SIZE * SIZE) % classes).reshape(SIZE, SIZE)
            image(root / "images" / side / f"{name}.png")
            mask(root / "masks" / side / f"{name}{mask_suffix}.png", values)
    return root


def store_maps(number: int, shape: tuple[int, int] = (12, 17)) -> dict[str, np.ndarray]:
    """Return the maps of image ``number`` in ``store-v2.h5``."""
    rng = np.random.default_rng(number)
    found: dict[str, np.ndarray] = {}
    for name, kind in STORE_KINDS.items():
        values = rng.random(shape, np.float32) if kind.is_score else rng.integers(0, 3, shape).astype(np.uint8)
        found["mask" if name == "masks" else name] = values
    found["mask"][0, 0] = 255
    return found


def store(path: Path, image_scores: Mapping[str, Sequence[float]] = MappingProxyType({})) -> Path:
    """Write a store with kinds of maps that are not built in."""
    ids = ["street/1", "street/2"]
    palette = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
    header = StoreHeader(classes=("a", "b", "c"), palette=palette, ignore_index=255, total=len(ids))
    with StoreWriter(path, header=header, ids=ids, kinds=STORE_KINDS, image_scores=list(image_scores)) as writer:
        for number, name in enumerate(ids):
            own = {score: values[number] for score, values in image_scores.items()}
            writer.add(name, own, **store_maps(number))
    return writer.finalize()


if __name__ == "__main__":
    for path, scores in ((STORE, {}), (SCORED_STORE, AGREEMENT)):
        path.unlink(missing_ok=True)
        store(path, scores)
