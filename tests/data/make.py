"""Small datasets on disk for the tests of layouts, lists, splits and init."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

SIZE = 8


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
