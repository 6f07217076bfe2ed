"""Flaw maps against the pseudo code of GCT's Appendix A and Eqs. (4), (5) and (7), pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sslseg.methods.gct.flaw_maps import (
    both_flawed,
    clean_up,
    dilate,
    exceeding_to_one,
    flaw_target,
    learns_from_other,
    spread_errors,
)


def reflected(index: int, size: int) -> int:
    """Return the pixel that a reflecting border shows at ``index``."""
    while not 0 <= index < size:
        index = -index if index < 0 else 2 * (size - 1) - index
    return index


def slow_blur(image: np.ndarray, part: int) -> np.ndarray:
    height, width = image.shape
    kernels = []
    for side in (height, width):
        size = side // part
        size += 1 - size % 2
        sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
        weights = [math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)]
        kernels.append([weight / sum(weights) for weight in weights])
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            for i, a in enumerate(kernels[0]):
                for j, b in enumerate(kernels[1]):
                    row = reflected(y + i - len(kernels[0]) // 2, height)
                    column = reflected(x + j - len(kernels[1]) // 2, width)
                    out[y, x] += a * b * image[row, column]
    return out


def slow_dilate(image: np.ndarray) -> np.ndarray:
    height, width = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            out[y, x] = max(
                image[reflected(y + i, height), reflected(x + j, width)] for i in (-1, 0, 1) for j in (-1, 0, 1)
            )
    return out


def slow_norm(image: np.ndarray) -> np.ndarray:
    return (image - image.min()) / (image.max() - image.min() + 1e-9)


@pytest.mark.parametrize("size", [(24, 24), (20, 34)])
@pytest.mark.parametrize("nu", [1, 3])
def test_pipeline_c_equals_its_pseudo_code(size: tuple[int, int], nu: int) -> None:
    torch.manual_seed(0)
    prediction = (4 * torch.randn(2, 3, *size)).softmax(1)
    labels = torch.randint(0, 3, (2, *size))
    labels[torch.rand(labels.shape) < 0.2] = 255
    got = flaw_target(prediction, labels, (labels != 255)[:, None], nu=nu)
    for n in range(2):
        flaws = np.zeros(size)
        for y in range(size[0]):
            for x in range(size[1]):
                if labels[n, y, x] != 255:
                    truth = [float(o == labels[n, y, x]) for o in range(3)]
                    flaws[y, x] = 0.5 * sum(abs(float(prediction[n, o, y, x]) - truth[o]) for o in range(3))
        flaws = slow_blur(flaws, 8)
        for _ in range(nu):
            flaws = slow_blur(slow_dilate(flaws), 4)
        np.testing.assert_allclose(got[n, 0].numpy(), slow_norm(flaws), atol=1e-5)


def test_ignored_pixels_spread_nothing() -> None:
    wrong = torch.ones(1, 1, 24, 24)
    assert (spread_errors(wrong, torch.zeros_like(wrong), nu=1) == 0).all()


@pytest.mark.parametrize("size", [(32, 32), (17, 40)])
def test_a_predicted_map_is_cleaned_up(size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    maps = torch.randn(3, 2, *size)
    maps[1] *= 0.02
    got = clean_up(maps)
    for n in range(3):
        for k in range(2):
            smooth = slow_blur(maps[n, k].clamp_min(0).double().numpy(), 16)
            expected = slow_norm(smooth) if smooth.max() > 0.1 else np.zeros(size)
            np.testing.assert_allclose(got[n, k].numpy(), expected, atol=1e-5)
    assert (got[1] == 0).all()
    assert got[0].amax((1, 2)).tolist() == pytest.approx([1, 1])


def test_padding_changes_nothing_in_a_cleaned_map() -> None:
    """Images of several sizes in one batch, each padded to 95 x 95, as alone: their kernels have one size."""
    torch.manual_seed(4)
    padded, valid_mask = 5 * torch.rand(3, 2, 95, 95), torch.zeros(3, 1, 95, 95, dtype=torch.bool)
    alone = [torch.rand(1, 2, *size) for size in ((64, 95), (70, 66), (95, 95))]
    for n, maps in enumerate(alone):
        height, width = maps.shape[2:]
        padded[n, :, :height, :width], valid_mask[n, :, :height, :width] = maps[0], True
    got = clean_up(padded, valid_mask)
    for n, maps in enumerate(alone):
        height, width = maps.shape[2:]
        torch.testing.assert_close(got[n, :, :height, :width], clean_up(maps)[0], atol=1e-5, rtol=0)
        assert (got[n].where(~valid_mask[n], 0) == 0).all()
    assert (clean_up(padded, torch.zeros_like(valid_mask)) == 0).all()


def test_ignored_pixels_enter_neither_blur_nor_stretch() -> None:
    torch.manual_seed(5)
    size = (36, 24)
    maps, valid_mask = torch.randn(2, 1, *size), torch.rand(2, 1, *size) > 0.3
    valid_mask[..., -1, :] = valid_mask[..., -1] = True
    maps = maps.where(valid_mask, 9.0)
    got = clean_up(maps, valid_mask)
    for n in range(2):
        counts = valid_mask[n, 0].double().numpy()
        inside = counts > 0
        sums = slow_blur(maps[n, 0].clamp_min(0).double().numpy() * counts, 16)
        smooth = (sums / slow_blur(counts, 16).clip(1e-9))[inside]
        np.testing.assert_allclose(got[n, 0].numpy()[inside], slow_norm(smooth), atol=1e-5)
        assert (got[n, 0].numpy()[~inside] == 0).all()


def test_masks_follow_their_equations_pixel_by_pixel() -> None:
    torch.manual_seed(2)
    one, other = (torch.rand(2, 1, 5, 7).mul(10).round() / 10 for _ in range(2))
    xi = 0.6
    a, b = exceeding_to_one(one, xi), exceeding_to_one(other, xi)
    own, fix = learns_from_other(a, b), both_flawed(one, other, xi)
    for index in np.ndindex(2, 1, 5, 7):
        f1, f2 = float(one[index]), float(other[index])
        g1, g2 = (1.0 if f > torch.tensor(xi) else f for f in (f1, f2))
        assert bool(own[index]) == (g1 > g2)
        assert bool(fix[index]) == (f1 > torch.tensor(xi) and f2 > torch.tensor(xi))
        assert not (own[index] and fix[index]), "what both have wrong is corrected, not copied"


def test_dilation_takes_the_largest_neighbor() -> None:
    image = torch.rand(1, 1, 9, 11)
    np.testing.assert_allclose(dilate(image)[0, 0].numpy(), slow_dilate(image[0, 0].numpy()), atol=1e-7)
