"""Choosing labeled images that hold every class, with about the class frequencies of the whole set."""

from __future__ import annotations

import numpy as np

CANDIDATES = 64  # compared for each choice of the greedy search, so that different seeds differ
SEARCH_BUDGET = 20_000  # nodes of the search for a smallest cover; beyond them the greedy cover is used


def stratified_order(pixels: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """Choose ``count`` rows of ``pixels`` (images x classes); a smaller count gives a prefix of a larger one.

    A smallest set of images that holds every class comes first, most classes first. Each further image, from a random
    sample of the rest, brings the class frequencies of the choice closest to those of the whole set.
    """
    target = pixels.sum(axis=0) / max(pixels.sum(), 1)
    left = rng.permutation(len(pixels))
    chosen = [int(left[index]) for index in _smallest_cover(pixels[left] > 0)][:count]
    left = left[~np.isin(left, chosen)]
    total = pixels[chosen].sum(axis=0) if chosen else np.zeros(pixels.shape[1])
    while len(chosen) < count:
        sums = total + pixels[left[:CANDIDATES]]
        frequencies = sums / np.maximum(sums.sum(axis=1, keepdims=True), 1)
        best = int(np.abs(frequencies - target).sum(axis=1).argmin())
        chosen.append(int(left[best]))
        total = sums[best]
        left = np.delete(left, best)
    return chosen


def _smallest_cover(present: np.ndarray) -> list[int]:
    """Return the fewest rows of a boolean matrix (images x classes) that together hold every class of any row."""
    first: dict[int, int] = {}
    for row, classes in enumerate(present):
        first.setdefault(sum(1 << int(index) for index in np.flatnonzero(classes)), row)
    sets = [
        classes
        for classes in first
        if classes and not any(classes != other and classes & ~other == 0 for other in first)
    ]
    universe = 0
    for classes in sets:
        universe |= classes
    best = _greedy(sets, universe)
    budget = [SEARCH_BUDGET]
    while len(best) > 1 and (fewer := _search(sets, universe, len(best) - 1, budget)) is not None:
        best = fewer
    return [first[classes] for classes in _greedy(best, universe)]


def _greedy(sets: list[int], missing: int) -> list[int]:
    chosen = []
    while missing:
        best = max(sets, key=lambda classes: (classes & missing).bit_count())
        chosen.append(best)
        missing &= ~best
    return chosen


def _search(sets: list[int], missing: int, size: int, budget: list[int]) -> list[int] | None:
    """Return at most ``size`` sets that hold ``missing``, branching on its rarest class; None if there are none."""
    if not missing:
        return []
    budget[0] -= 1
    widest = max((classes & missing).bit_count() for classes in sets)
    if budget[0] < 0 or size * widest < missing.bit_count():
        return None
    bits = [1 << index for index in range(missing.bit_length()) if missing >> index & 1]
    options = min(([classes for classes in sets if classes & bit] for bit in bits), key=len)
    for classes in sorted(options, key=lambda option: -(option & missing).bit_count()):
        rest = _search(sets, missing & ~classes, size - 1, budget)
        if rest is not None:
            return [classes, *rest]
    return None
