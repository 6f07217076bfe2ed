"""The cutout of ST++: one rectangle of noise, which the maps of the image ignore to the pixel."""

from __future__ import annotations

from typing import Any

import numpy as np

from sslseg.data.dataset import seed_everything
from sslseg.registry import TRANSFORMS

SHAPE = (240, 360)


def results() -> dict[str, Any]:
    return dict(
        img=np.full((*SHAPE, 3), 44, np.uint8),
        pseudo_map=np.full(SHAPE, 2, np.uint8),
        valid_map=np.zeros(SHAPE, np.uint8),
        weight_map=np.full(SHAPE, 9, np.uint16),
        seg_fields=["pseudo_map", "valid_map", "weight_map"],
        fill=dict(img=(1, 2, 3), pseudo_map=255, valid_map=255, weight_map=0),
    )


def test_one_rectangle_of_noise_is_ignored_to_the_pixel() -> None:
    seed_everything(0)
    cutout = TRANSFORMS.build(dict(type="NoiseCutout", prob=0.5))
    areas, ratios, cut = [], [], 0
    for _ in range(400):
        before, after = results(), cutout(results())
        ignored = after["pseudo_map"] == 255
        if not ignored.any():
            np.testing.assert_array_equal(after["img"], before["img"])
            continue
        cut += 1
        rows, columns = np.flatnonzero(ignored.any(axis=1)), np.flatnonzero(ignored.any(axis=0))
        high, wide = len(rows), len(columns)
        assert ignored[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert ignored.sum() == high * wide
        np.testing.assert_array_equal(after["valid_map"] == 255, ignored)
        np.testing.assert_array_equal(after["weight_map"] == 0, ignored)
        changed = (after["img"] != before["img"]).any(axis=2)
        assert not changed[~ignored].any()
        noise = after["img"][ignored].astype(float)
        assert noise.std() > 40  # bytes from 0 to 255 have a deviation of 74
        assert np.unique(noise[:, 0] - noise[:, 1]).size > 1  # each channel has its own
        areas.append(high * wide / before["pseudo_map"].size)
        ratios.append(high / wide)
    assert 0.42 < cut / 400 < 0.58
    # Sides are whole pixels, rounded down.
    assert 0.018 < min(areas) < 0.06
    assert 0.3 < max(areas) <= 0.4
    assert 0.28 < min(ratios) < 0.5
    assert 2.5 < max(ratios) < 3.55


def test_equal_random_numbers_give_equal_images() -> None:
    cutout = TRANSFORMS.build(dict(type="NoiseCutout", prob=1.0))
    images = []
    for _ in range(2):
        seed_everything(3)
        images.append(cutout(results())["img"])
    np.testing.assert_array_equal(*images)
