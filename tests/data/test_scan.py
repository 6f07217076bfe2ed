from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sslseg.data.layouts import list_samples
from sslseg.data.scan import histograms, scan
from sslseg.errors import UserError
from sslseg.init import describe
from tests.data.make import SIZE, folder, mask


def run(root: Path, workers: int = 2) -> list:
    description = describe(root, classes="a,b,c", ignore_index=255).description
    listing = list_samples(description)
    samples = list(listing.train.values())
    subsets = {"labeled": samples[:2], "unlabeled": samples[2:], "val": list(listing.val.values())}
    return scan(subsets, description, masks=("labeled", "val"), workers=workers)


def test_counts(tmp_path: Path) -> None:
    root = folder(tmp_path, train=4, val=1)
    mask(root / "masks/train/t000.png", np.where(np.arange(SIZE * SIZE).reshape(SIZE, SIZE) < 16, 1, 255))
    labeled, unlabeled, val = run(root)
    assert (labeled.images, unlabeled.images, val.images) == (2, 2, 1)
    assert labeled.pixels[0].tolist() == [0, 16, 0]
    assert labeled.occurrences.tolist() == [1, 2, 1]
    assert labeled.frequencies.sum() == pytest.approx(1)
    assert unlabeled.pixels.sum() == 0


@pytest.mark.parametrize("values", [9, np.zeros((3, 3))])
def test_masks_of_unlabeled_images_are_never_read(tmp_path: Path, values: object) -> None:
    root = folder(tmp_path, train=4, val=1)
    path = root / "masks/train/t003.png"
    description = describe(root, classes="a,b,c", ignore_index=255).description
    path.write_bytes(b"not an image")
    samples = list(list_samples(description).train.values())
    scan({"labeled": samples[:2], "unlabeled": samples[2:]}, description, masks=("labeled",), workers=2)
    with pytest.raises(UserError, match=r"t003\.png cannot be decoded"):
        scan({"labeled": samples[2:]}, description, masks=("labeled",), workers=2)


def test_sizes_must_match(tmp_path: Path) -> None:
    root = folder(tmp_path, train=4, val=1)
    mask(root / "masks/train/t001.png", np.zeros((4, 5)))
    with pytest.raises(UserError, match=r"t001\.png is 5x4, its image 8x8"):
        run(root)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_problem_is_named_with_the_number_of_all(tmp_path: Path, workers: int) -> None:
    root = folder(tmp_path, train=4, val=1)
    description = describe(root, classes="a,b,c", ignore_index=255).description
    for name in ("t000", "t002"):
        (root / f"images/train/{name}.png").write_bytes(b"x")
    listing = list_samples(description)
    with pytest.raises(UserError, match=r"t000\.png cannot be decoded.*\(and 1 more such files of 4\)"):
        scan({"labeled": list(listing.train.values())}, description, masks=("labeled",), workers=workers)


def test_histograms(tmp_path: Path) -> None:
    root = folder(tmp_path, train=3, val=1, classes=2)
    description = describe(root, classes="a,b,c", ignore_index=255).description
    pixels = histograms(list(list_samples(description).train.values()), description, workers=2)
    assert pixels.tolist() == [[32, 32, 0]] * 3
