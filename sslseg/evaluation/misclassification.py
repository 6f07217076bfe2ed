"""Misclassification detection with a stored score: exact AUROC and AP over all pixels, in little memory."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.dist import all_reduce

from sslseg.store.format import SCORE_LEVELS


def auroc(wrong: np.ndarray, right: np.ndarray) -> float | None:
    """Return the probability that a wrong pixel scores above a right one (a tie is one half); None without both.

    **Shape**: numbers of wrong and of right pixels at each level of the score, ascending.
    """
    wrong, right = wrong.astype(np.float64), right.astype(np.float64)
    if not (wrong.sum() and right.sum()):
        return None
    below = np.cumsum(right) - right
    return float((wrong * (below + right / 2)).sum() / (wrong.sum() * right.sum()))


def average_precision(wrong: np.ndarray, right: np.ndarray) -> float | None:
    """Return the mean precision over all wrong pixels, in descending order of the score; None without wrong pixels.

    **Shape**: as for ``auroc``.
    """
    if not wrong.sum():
        return None
    found = np.cumsum(wrong[::-1], dtype=np.float64)
    seen = np.cumsum((wrong + right)[::-1], dtype=np.float64)
    return float((wrong[::-1] * found / np.maximum(seen, 1)).sum() / wrong.sum())


class MisclassificationDetection:
    """Counts wrong and right pixels by the level of a stored score.

    Args:
        score: its name in the store.
        high: what a high value means (``StoreReader.high``); where it is ``right``, 1 - score detects wrong pixels.
    """

    def __init__(self, score: str, *, high: str) -> None:
        if high not in ("wrong", "right"):
            raise ValueError(f"{score!r} is not a score: its high values mean {high!r}, neither wrong nor right")
        self.score, self.high = score, high
        self.counts = torch.zeros(2, SCORE_LEVELS, dtype=torch.int64)

    def add(self, stored: np.ndarray, *, wrong: np.ndarray, valid_mask: np.ndarray) -> None:
        """Count one image: stored score (uint16), where its mask is wrong, and where it has a label; H x W each."""
        levels = stored[valid_mask].astype(np.int64)
        if self.high == "right":
            levels = SCORE_LEVELS - 1 - levels
        bins = levels + SCORE_LEVELS * wrong[valid_mask]
        self.counts += torch.from_numpy(np.bincount(bins, minlength=2 * SCORE_LEVELS)).reshape(2, SCORE_LEVELS)

    def finish(self) -> dict[str, float | None]:
        """Gather all ranks' counts and return ``auroc`` and ``average_precision`` on every rank."""
        counts = self.counts.clone()
        all_reduce(counts)
        right, wrong = counts.numpy()
        return dict(auroc=auroc(wrong, right), average_precision=average_precision(wrong, right))
