"""AUROC and average precision against their definitions, pair by pair and pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from sslseg.evaluation.misclassification import MisclassificationDetection, auroc, average_precision
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


def test_a_high_confidence_means_right_and_unlabeled_pixels_are_left_out() -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(0, SCORE_LEVELS, (20, 30)).astype(np.uint16)
    valid_mask, wrong = rng.random((20, 30)) < 0.8, stored > 40000
    for score, high, expected in (("entropy", "wrong", 1.0), ("confidence", "right", 0.0)):
        detection = MisclassificationDetection(score, high=high)
        detection.add(stored[:9], wrong=wrong[:9], valid_mask=valid_mask[:9])
        detection.add(stored[9:], wrong=wrong[9:], valid_mask=valid_mask[9:])
        assert detection.counts.sum() == valid_mask.sum()
        assert detection.finish()["auroc"] == expected
    with pytest.raises(ValueError, match="masks"):
        MisclassificationDetection("masks", high="class")


def test_without_errors_there_is_nothing_to_detect() -> None:
    detection = MisclassificationDetection("entropy", high="wrong")
    detection.add(np.ones((2, 2), np.uint16), wrong=np.zeros((2, 2), bool), valid_mask=np.ones((2, 2), bool))
    assert detection.finish() == dict(auroc=None, average_precision=None)
