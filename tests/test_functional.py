"""Pure tensor functions against slow, obvious references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sslseg.functional.consistency import cross_entropy, mean, squared_error
from sslseg.functional.geometry import warp
from sslseg.functional.mixing import class_masks, overlaid_rectangles, paste, rectangles, small_boxes
from sslseg.functional.schedule import sigmoid_rampup


def slow_warp(image: torch.Tensor, matrix: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
    """Nearest pixel, one at a time."""
    channels, height, width = image.shape
    moved = fill.reshape(-1, 1, 1).expand(channels, height, width).clone()
    for y in range(height):
        for x in range(width):
            source = matrix.double() @ torch.tensor([x, y, 1.0], dtype=torch.float64)
            column, row = (math.floor(float(value) + 0.5) for value in source)
            if 0 <= row < height and 0 <= column < width:
                moved[:, y, x] = image[:, row, column]
    return moved


@pytest.mark.parametrize("size", [(7, 7), (6, 11)])
def test_warp_takes_the_nearest_pixel(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    images = torch.rand(5, 3, *size)
    matrices = torch.eye(2, 3).repeat(5, 1, 1) + torch.randn(5, 2, 3) * torch.tensor([0.3, 0.3, 2.0])
    fill = torch.tensor([1.0, 2.0, 3.0])
    expected = torch.stack([slow_warp(image, matrix, fill) for image, matrix in zip(images, matrices, strict=True)])
    torch.testing.assert_close(warp(images, matrices, mode="nearest", fill=fill), expected)


def test_warp_by_whole_pixels_is_exact_in_both_modes() -> None:
    image = torch.randint(0, 65536, (1, 1, 5, 6)).float()
    shift = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]])
    for mode in ("nearest", "bilinear"):
        moved = warp(image, shift, mode=mode, fill=65535.0)
        torch.testing.assert_close(moved[0, 0, 1:, :4], image[0, 0, :-1, 2:])
        assert (moved[0, 0, 0] == 65535).all()
        assert (moved[0, 0, :, 4:] == 65535).all()


def test_warp_keeps_its_precision_under_mixed_precision() -> None:
    image = torch.rand(1, 1, 4, 1100)
    shift = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moved = warp(image, shift, mode="nearest")
    torch.testing.assert_close(moved[..., :-1], image[..., 1:])


@pytest.mark.parametrize("size", [(32, 32), (20, 45)])
def test_rectangles_cover_half_the_image(size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    masks = rectangles(200, size, device=torch.device("cpu"))
    assert masks.shape == (200, 1, *size)
    for mask in masks[:, 0]:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), "not one full rectangle"
        assert mask.sum() == len(rows) * len(columns)
    areas = masks.float().mean(dim=(1, 2, 3))
    assert (areas - 0.5).abs().max() < 0.04  # whole pixels only
    heights = masks.any(dim=3).float().mean(dim=(1, 2))
    assert heights.min() < 0.55
    assert heights.max() > 0.95
    assert rectangles(3000, size, device=torch.device("cpu")).any(dim=0).all(), "a pixel that is never covered"


@pytest.mark.parametrize("size", [(48, 48), (40, 90)])
def test_overlaid_rectangles_are_those_of_toggling_one_after_the_other(size: tuple[int, int]) -> None:
    def slow_mask(random: np.random.Generator) -> np.ndarray:
        mask = np.zeros(size, dtype=bool)
        for _ in range(3):
            area = random.uniform(0.25, 0.5)
            high = area ** random.uniform()
            sides = [
                round(fraction / np.sqrt(3) * side) for fraction, side in zip((high, area / high), size, strict=True)
            ]
            top, left = (round((whole - side) * random.uniform()) for whole, side in zip(size, sides, strict=True))
            box = (slice(top, top + sides[0]), slice(left, left + sides[1]))
            mask[box] = ~mask[box]
        return mask

    number = 6000
    torch.manual_seed(1)
    masks = overlaid_rectangles(number, size, device=torch.device("cpu"))
    assert masks.shape == (number, 1, *size)
    random = np.random.default_rng(0)
    expected = np.stack([slow_mask(random) for _ in range(number)])
    found = masks[:, 0].numpy()
    areas, slow_areas = found.mean(axis=(1, 2)), expected.mean(axis=(1, 2))
    assert 0.0 < areas.min() < 0.1, "boxes that nearly cover each other"
    assert areas.max() < 0.5 + 0.03, "three disjoint boxes of a sixth each, in whole pixels"
    assert areas.mean() == pytest.approx(slow_areas.mean(), abs=0.004)
    assert areas.std() == pytest.approx(slow_areas.std(), rel=0.04)
    assert np.abs(found.mean(axis=0) - expected.mean(axis=0)).max() < 0.04, "where boxes lie"
    single = overlaid_rectangles(number, size, count=1, device=torch.device("cpu")).float().mean(dim=(1, 2, 3))
    assert 0.23 < single.min() < 0.26
    assert 0.49 < single.max() < 0.52
    assert single.std() == pytest.approx(0.25 / math.sqrt(12), rel=0.05), "uniform areas"
    assert not np.array_equal(found[0], found[1])


def test_two_overlaid_rectangles_are_apart_where_both_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    given = torch.zeros(2, 2, 1, 4, 4, dtype=torch.bool)
    given[0, 0, :, :3], given[0, 1, :, 2:], given[1, 0, :, :, :1] = True, True, True
    monkeypatch.setattr("sslseg.functional.mixing.rectangles", lambda *_, **__: given.flatten(0, 1))
    masks = overlaid_rectangles(2, (4, 4), count=2, device=torch.device("cpu"))
    assert masks[0, 0, :, 0].tolist() == [True, True, False, True]
    assert torch.equal(masks[1], given[1, 0])


def test_class_masks_take_whole_classes_and_half_of_them() -> None:
    torch.manual_seed(2)
    labels = torch.randint(0, 5, (40, 6, 7))
    labels[0] = 3
    valid = torch.ones_like(labels, dtype=torch.bool)
    valid[:, -2:] = False
    labels[1, -2:] = 8  # a class of padding alone
    valid[2] = False
    masks = class_masks(labels, 9, valid)
    assert not (masks[:, 0] & ~valid).any()
    chosen_ever: set[int] = set()
    for label, mask, counted in zip(labels, masks[:, 0], valid, strict=True):
        present = set(label[counted].unique().tolist())
        chosen = {c for c in present if mask[(label == c) & counted].all()}
        assert not any(mask[label == c].any() for c in present - chosen), "part of a class"
        assert len(chosen) == math.ceil(len(present) / 2)
        chosen_ever |= chosen
    assert chosen_ever == {0, 1, 2, 3, 4}


def test_paste_takes_the_rest_from_the_next_image() -> None:
    images = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 2, 4, 4)
    kept = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    kept[:, :, :2] = True
    mixed = paste(images, kept)
    for index in range(3):
        assert (mixed[index, :, :2] == index).all()
        assert (mixed[index, :, 2:] == (index + 1) % 3).all()


@pytest.mark.parametrize("size", [(64, 64), (40, 96)])
def test_small_boxes_are_those_of_drawing_again_until_one_fits(size: tuple[int, int]) -> None:
    def slow_area(random: np.random.Generator) -> float:
        height, width = size
        while True:
            area, aspect = random.uniform(0.02, 0.4) * height * width, random.uniform(0.3, 1 / 0.3)
            high, wide = int(np.sqrt(area * aspect)), int(np.sqrt(area / aspect))
            top, left = random.integers(height), random.integers(width)
            if top + high <= height and left + wide <= width:
                return high * wide / (height * width)

    masks = small_boxes(4000, size, prob=1.0, device=torch.device("cpu"))
    areas = masks.float().mean(dim=(1, 2, 3))
    random = np.random.default_rng(0)
    expected = np.array([slow_area(random) for _ in range(4000)])
    assert areas.mean() == pytest.approx(expected.mean(), rel=0.03)
    assert areas.std() == pytest.approx(expected.std(), rel=0.05)
    for mask in masks[:200, 0]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert mask.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1), "a rectangle"
    assert masks.any(dim=0)[0, 4:-4, 4:-4].all(), "a pixel that is never covered"
    some = small_boxes(4000, size, prob=0.3, device=torch.device("cpu")).flatten(1).any(1)
    assert float(some.float().mean()) == pytest.approx(0.3, abs=0.03)


def test_distances_average_over_valid_pixels_only() -> None:
    torch.manual_seed(3)
    logits, targets = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5).softmax(1)
    classes = torch.randint(0, 4, (2, 3, 5))
    valid = torch.rand(2, 3, 5) < 0.6
    soft, hard, squares, number = 0.0, 0.0, 0.0, 0
    for n in range(2):
        for y in range(3):
            for x in range(5):
                if valid[n, y, x]:
                    p = [math.exp(v) for v in logits[n, :, y, x].tolist()]
                    p = [v / sum(p) for v in p]
                    t = targets[n, :, y, x].tolist()
                    soft -= sum(b * math.log(a) for a, b in zip(p, t, strict=True))
                    hard -= math.log(p[classes[n, y, x]])
                    squares += sum((a - b) ** 2 for a, b in zip(p, t, strict=True)) / 4
                    number += 1
    assert float(cross_entropy(logits, targets, valid)) == pytest.approx(soft / number, rel=1e-5)
    assert float(cross_entropy(logits, classes, valid)) == pytest.approx(hard / number, rel=1e-5)
    assert float(squared_error(logits, targets, valid)) == pytest.approx(squares / number, rel=1e-5)


def test_without_valid_pixels_the_mean_is_zero_and_its_gradient_not_nan() -> None:
    logits = torch.full((1, 2, 2, 2), torch.inf, requires_grad=True)
    values = logits.sum(1)
    result = mean(values, torch.zeros(1, 2, 2))
    result.backward()
    assert result.item() == 0
    assert torch.isfinite(logits.grad).all()


def test_rampup_follows_its_formula() -> None:
    assert sigmoid_rampup(0.0, 0.4) == pytest.approx(math.exp(-5))
    assert sigmoid_rampup(0.1, 0.4) == pytest.approx(math.exp(-5 * 0.75**2))
    assert sigmoid_rampup(0.4, 0.4) == sigmoid_rampup(0.9, 0.4) == sigmoid_rampup(0.0, 0.0) == 1
