"""The built-in synthetic dataset: determined by its seed, of the stated class frequencies, and never incomplete."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sslseg.data import synthetic
from sslseg.data.layouts.shapes import describe
from sslseg.errors import UserError
from sslseg.split import SplitOptions, make_split


def test_an_image_depends_on_seed_and_index_alone() -> None:
    image, mask = synthetic.draw(3, seed=0)
    np.random.seed(1)
    again = synthetic.draw(3, seed=0)
    assert np.array_equal(image, again[0])
    assert np.array_equal(mask, again[1])
    assert not np.array_equal(image, synthetic.draw(4, seed=0)[0])
    assert not np.array_equal(image, synthetic.draw(3, seed=1)[0])
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((96, 96, 3), np.uint8, (96, 96), np.uint8)


def test_classes_are_unequal_and_all_there() -> None:
    pixels = sum(np.bincount(synthetic.draw(index, seed=0)[1].ravel(), minlength=7) for index in range(200))
    frequencies = pixels / pixels.sum()
    assert len(synthetic.CLASSES) == len(synthetic.PALETTE) == 7
    assert frequencies.min() > 0.005
    assert frequencies[0] > 0.5
    assert frequencies[1] > 3 * frequencies[6]


def test_no_single_color_identifies_the_class() -> None:
    """Mean colors overlap between classes: at least 15 % of the visible shapes are nearest to the center of another class."""
    colors: list[list[np.ndarray]] = [[] for _ in synthetic.CLASSES]
    for index in range(150):
        image, mask = synthetic.draw(index, seed=0)
        for kind in np.unique(mask)[1:]:
            colors[kind].append(image[mask == kind].mean(0))
    centers = np.array([np.mean(kind, axis=0) for kind in colors[1:]])
    right = [
        np.linalg.norm(centers - color, axis=1).argmin() == kind
        for kind, found in enumerate(colors[1:])
        for color in found
    ]
    assert 1 / 6 < np.mean(right) < 0.85


def test_created_once_and_recognized(tmp_path: Path) -> None:
    root = tmp_path / "data" / "shapes"
    synthetic.ensure(root, train=6, val=2)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    synthetic.ensure(root, train=6, val=2)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert sorted(path.name for path in root.iterdir()) == ["images", "masks", "shapes.json"]
    for change in (dict(seed=1), dict(train=7)):
        with pytest.raises(UserError, match=f"with {next(iter(change))}.*remove the folder"):
            synthetic.ensure(root, **(dict(train=6, val=2) | change))
    (root / "shapes.json").unlink()
    with pytest.raises(UserError, match="not the built-in synthetic dataset"):
        synthetic.ensure(root, train=6, val=2)


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = synthetic.draw

    def stop(index: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if index == 3:
            raise KeyboardInterrupt
        return original(index, seed=seed)

    monkeypatch.setattr(synthetic, "draw", stop)
    with pytest.raises(KeyboardInterrupt):
        synthetic.ensure(tmp_path / "shapes", train=6, val=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_default_size(tmp_path: Path) -> None:
    split = make_split(describe(tmp_path / "shapes"), SplitOptions(ratio="1/16"))
    assert (len(split.labeled), len(split.unlabeled), len(split.val)) == (32, 480, 128)
