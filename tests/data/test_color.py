"""Color jitter: the operations and ranges of torchvision's, against slow references pixel by pixel."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
from mmcv import adjust_color

from sslseg.data.color import ColorJitter, change_brightness, change_contrast, change_hue
from sslseg.registry import TRANSFORMS, register_modules

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def gray(image: np.ndarray) -> np.ndarray:
    blue, green, red = (image[..., channel].astype(float) for channel in range(3))
    return np.round(0.299 * red + 0.587 * green + 0.114 * blue)


def slow(change: Callable, value: float) -> np.ndarray:
    image = IMAGE.astype(float)
    if change is change_brightness:
        changed = image * value
    elif change is change_contrast:
        mean = round(gray(IMAGE).mean())
        changed = mean + (image - mean) * value
    elif change is adjust_color:
        changed = gray(IMAGE)[..., None] + (image - gray(IMAGE)[..., None]) * value
    else:
        changed = np.empty_like(image)
        for y, x in np.ndindex(image.shape[:2]):
            hue, saturation, brightness = colorsys.rgb_to_hsv(*image[y, x, ::-1] / 255)
            changed[y, x, ::-1] = 255 * np.array(colorsys.hsv_to_rgb((hue + value) % 1, saturation, brightness))
    return np.clip(np.round(changed), 0, 255)


@pytest.mark.parametrize("value", [0.5, 0.8, 1.0, 1.5])
@pytest.mark.parametrize("change", [change_brightness, change_contrast, adjust_color])
def test_factors_equal_the_slow_ones(change: Callable, value: float) -> None:
    assert np.abs(change(IMAGE.copy(), value).astype(float) - slow(change, value)).max() <= 2


@pytest.mark.parametrize("shift", [-0.25, -0.1, 0.0, 0.2, 0.5])
def test_hue_turns_the_color_circle(shift: float) -> None:
    difference = np.abs(change_hue(IMAGE.copy(), shift).astype(float) - slow(change_hue, shift))
    assert difference.max() <= 8, "hue has 256 steps"
    assert difference.mean() < 2


def test_all_four_change_in_random_order_within_their_ranges() -> None:
    drawn: dict[int, list[float]] = {}
    orders = set()
    jitter = ColorJitter(brightness=0.3, contrast=0.4, saturation=0.5, hue=0.1, prob=1.0)
    np.random.seed(0)
    order: list[int] = []

    def watch(position: int) -> Callable:
        def change(image: np.ndarray, value: float) -> np.ndarray:
            drawn.setdefault(position, []).append(value)
            order.append(position)
            return image

        return change

    jitter.ranges = tuple((watch(k), low, high) for k, (_, low, high) in enumerate(jitter.ranges))
    for _ in range(300):
        order.clear()
        jitter(dict(img=IMAGE))
        orders.add(tuple(order))
    assert len(orders) == 24
    for position, (low, high) in enumerate([(0.7, 1.3), (0.6, 1.4), (0.5, 1.5), (-0.1, 0.1)]):
        values = np.array(drawn[position])
        assert len(values) == 300
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high


def test_the_probability_decides_for_all_four_together() -> None:
    np.random.seed(1)
    register_modules()
    jitter = TRANSFORMS.build(dict(type="ColorJitter", prob=0.8))
    changed = [not np.array_equal(jitter(dict(img=IMAGE.copy()))["img"], IMAGE) for _ in range(500)]
    assert 0.74 < np.mean(changed) < 0.86
