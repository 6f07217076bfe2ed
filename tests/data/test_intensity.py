"""AugSeg's intensity augmentation: every operation against Pillow or a slow reference, strengths, numbers, a list of views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from sslseg.config.build import TrainOptions, build_config
from sslseg.data import intensity
from sslseg.data.intensity import OPERATIONS
from sslseg.engine.build import transforms_of
from sslseg.registry import TRANSFORMS, register_modules
from sslseg.splits.split import Split

RANDOM = np.random.default_rng(0)
IMAGE = np.kron(RANDOM.integers(20, 200, (8, 7, 3), dtype=np.uint8), np.ones((3, 3, 1), np.uint8))  # blocks, 24 x 21
IMAGE[::5, ::4] = RANDOM.integers(10, 240, IMAGE[::5, ::4].shape)


def with_pillow(change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    return np.asarray(change(Image.fromarray(np.ascontiguousarray(IMAGE[..., ::-1]))))[..., ::-1].astype(float)


def hue(image: Image.Image, shift: float) -> Image.Image:
    values = np.asarray(image.convert("HSV")).copy()
    values[..., 0] += np.uint8(round(shift * 256) % 256)
    return Image.fromarray(values, "HSV").convert("RGB")


def slow_blur(sigma: float) -> np.ndarray:
    """Return the image under a Gaussian, summed pixel by pixel, mirrored at its borders."""
    reach = 6
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    padded = np.pad(IMAGE.astype(float), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    blurred = np.zeros(IMAGE.shape)
    for y, x in np.ndindex(IMAGE.shape[:2]):
        blurred[y, x] = (padded[y : y + 2 * reach + 1, x : x + 2 * reach + 1] * kernel[..., None]).sum((0, 1))
    return blurred


ENHANCERS = dict(
    contrast=ImageEnhance.Contrast,
    brightness=ImageEnhance.Brightness,
    color=ImageEnhance.Color,
    sharpness=ImageEnhance.Sharpness,
)
# Operation, strength, reference, largest difference.
CASES: list[tuple[str, Any, Callable[[], np.ndarray], float]] = [
    ("identity", None, lambda: IMAGE.astype(float), 0),
    ("autocontrast", None, lambda: with_pillow(ImageOps.autocontrast), 1),
    ("equalize", None, lambda: with_pillow(ImageOps.equalize), 0),
    *(
        (name, value, lambda kind=kind, value=value: with_pillow(lambda image: kind(image).enhance(value)), 2)
        for name, kind in ENHANCERS.items()
        for value in (0.05, 0.4, 0.95)
    ),
    *(
        ("posterize", bits, lambda bits=bits: with_pillow(lambda i: ImageOps.posterize(i, bits)), 0)
        for bits in range(4, 8)
    ),
    *(("solarize", t, lambda t=t: with_pillow(lambda i: ImageOps.solarize(i, t)), 0) for t in (1, 100, 255)),
    *(("blur", sigma, lambda sigma=sigma: slow_blur(sigma), 3) for sigma in (0.5, 1.3, 2.0)),
    *(("hue", shift, lambda shift=shift: with_pillow(lambda i: hue(i, shift)), 8) for shift in (-0.5, -0.2, 0.1, 0.49)),
]


@pytest.mark.parametrize(("name", "strength", "reference", "largest"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_an_operation_equals_its_reference(name: str, strength: Any, reference: Callable, largest: float) -> None:
    changed = OPERATIONS[name][0](IMAGE.copy(), strength)
    assert changed.dtype == np.uint8
    assert changed.shape == IMAGE.shape
    difference = np.abs(changed.astype(float) - reference())
    if name == "sharpness":  # Pillow leaves the outermost pixels as they are
        difference = difference[1:-1, 1:-1]
    assert difference.max() <= largest
    assert difference.mean() <= 1.5
    assert name == "identity" or not np.array_equal(changed, IMAGE) or (name, strength) == ("solarize", 255)


def test_there_is_a_reference_for_each_of_the_eleven_operations() -> None:
    assert {name for name, *_ in CASES} == set(OPERATIONS)
    assert len(OPERATIONS) == 11


@pytest.mark.parametrize(
    ("name", "low", "high", "whole"),
    [
        ("blur", 0.1, 2.0, False),
        *((name, 0.05, 0.95, False) for name in ENHANCERS),
        ("posterize", 4, 7, True),
        ("solarize", 1, 255, True),
        ("hue", -0.5, 0.5, False),
    ],
)
def test_strengths_fill_their_ranges(name: str, low: float, high: float, whole: bool) -> None:
    np.random.seed(0)
    values = [OPERATIONS[name][1]() for _ in range(4000)]
    room = 0 if whole else 0.01 * (high - low)
    assert low <= min(values) <= low + room
    assert high - room <= max(values) <= high
    assert np.mean(values) == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
    assert all(value == int(value) for value in values) == whole


def test_one_to_three_operations_are_sampled_with_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    watched = {
        name: (lambda image, _, name=name: seen.append(name) or image, strength)
        for name, (_, strength) in OPERATIONS.items()
    }
    monkeypatch.setattr(intensity, "OPERATIONS", watched)
    register_modules()
    transform = TRANSFORMS.build(dict(type="RandomIntensity"))
    np.random.seed(1)
    numbers: Counter[int] = Counter()
    names: Counter[str] = Counter()
    twice = triples = 0
    for _ in range(3300):
        seen.clear()
        transform(dict(img=IMAGE))
        numbers[len(seen)] += 1
        names.update(seen)
        if len(seen) == 3:
            triples += 1
            twice += len(set(seen)) < 3
    assert set(numbers) == {1, 2, 3}
    assert max(abs(number - 1100) for number in numbers.values()) < 120
    assert set(names) == set(OPERATIONS)
    assert max(abs(number - 600) for number in names.values()) < 100
    assert twice / triples == pytest.approx(1 - 10 / 11 * 9 / 11, abs=0.05)


def test_it_is_the_strong_view_of_a_config_that_changes_nothing_else(toy_split: Split) -> None:
    config, plain = (
        build_config(toy_split, TrainOptions(config=f"fixmatch/{name}", pretrained="none"))
        for name in ("default_intensity", "default")
    )
    assert transforms_of("strong", config) == [dict(type="RandomIntensity")]
    assert {key for key in config if config[key] != plain.get(key)} == {"views"}
