"""AUROC and average precision against their definitions, pair by pair and pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from sslseg.ranking import ErrorRanking, auroc, average_precision
from sslseg.store.format import SCORE_LEVELS


def histograms(scores: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.bincount(scores[side], minlength=int(scores.max()) + 1) for side in (wrong, ~wrong))  # type: ignore[return-value]


@pytest.mark.parametrize("levels", [3, 50])
def test_they_equal_their_definitions(levels: int) -> None:
    rng = np.random.default_rng(levels)
    scores, wrong = rng.integers(0, levels, 80), rng.random(80) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[wrong] for b in scores[~wrong]]
    assert auroc(*histograms(scores, wrong)) == pytest.approx(np.mean(pairs))
    precisions = [wrong[scores >= score].mean() for score in scores[wrong]]
    assert average_precision(*histograms(scores, wrong)) == pytest.approx(np.mean(precisions))


def test_confidence_is_turned_around_and_unlabelled_pixels_are_left_out() -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(0, SCORE_LEVELS, (20, 30)).astype(np.uint16)
    counted, wrong = rng.random((20, 30)) < 0.8, stored > 40000
    for kind, expected in (("entropy", 1.0), ("confidence", 0.0)):
        ranking = ErrorRanking(kind)
        ranking.add(stored[:9], wrong[:9], counted[:9])
        ranking.add(stored[9:], wrong[9:], counted[9:])
        assert ranking.counts.sum() == counted.sum()
        assert ranking.finish()["auroc"] == expected
    with pytest.raises(ValueError, match="masks"):
        ErrorRanking("masks")


def test_without_errors_there_is_nothing_to_find() -> None:
    ranking = ErrorRanking("entropy")
    ranking.add(np.ones((2, 2), np.uint16), np.zeros((2, 2), bool), np.ones((2, 2), bool))
    assert ranking.finish() == dict(auroc=None, average_precision=None)
