"""Confidence thresholds by class from held-out labels, against a slow reference."""

from __future__ import annotations

import numpy as np
import pytest

from sslseg.data import precision as module
from sslseg.data.precision import accepted, class_thresholds
from sslseg.store.format import SCORE_LEVELS


def slow(pixels: list[tuple[int, int, bool]], classes: int, precision: float, fewest: int) -> list[int]:
    """Try every level: the lowest one from which on enough of the pixels are right."""

    def lowest(own: list[tuple[int, int, bool]]) -> int:
        for level in range(SCORE_LEVELS):
            above = [right for _, found, right in own if found >= level]
            if above and sum(above) / len(above) >= precision:
                return level
            if not above:
                return SCORE_LEVELS
        return SCORE_LEVELS

    rows = [[pixel for pixel in pixels if pixel[0] == c] for c in range(classes)]
    return [lowest(row) if len(row) >= fewest else lowest(pixels) for row in rows]


@pytest.mark.parametrize("precision", [0.5, 0.8, 1.0])
def test_thresholds_equal_the_slow_ones(precision: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEWEST", 20)
    random = np.random.default_rng(0)
    pixels = []
    for c, number in ((0, 80), (1, 60), (2, 5), (3, 40)):  # class 2 is too rare, class 3 always wrong
        for level in random.integers(0, 300, number):
            pixels.append((c, int(level), c != 3 and random.random() < level / 300 + 0.1 * (c == 0)))
    counts = np.zeros((2, 4, SCORE_LEVELS), np.int64)
    for c, level, right in pixels:
        counts[int(right), c, level] += 1
    found = class_thresholds(counts[1], counts[0], precision)
    assert list(found) == slow(pixels, 4, precision, 20)
    assert found[3] == SCORE_LEVELS


def test_a_pixel_is_accepted_by_the_threshold_of_its_own_class() -> None:
    mask = np.array([[0, 0, 1, 1, 2, 255]], np.uint8)
    levels = np.array([[9, 10, 10, 99, 65535, 65535]], np.uint16)
    assert accepted(mask, levels, (10, 99, SCORE_LEVELS)).tolist() == [[False, True, False, True, False, False]]
    assert accepted(mask.astype(np.uint16), levels, (0, 0, 0)).tolist() == [[True] * 5 + [False]]
