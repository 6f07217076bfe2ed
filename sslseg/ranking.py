"""How well a stored score knows a mask's errors: AUROC and average precision over all pixels, exact and in little memory."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.dist import all_reduce

from sslseg.store.format import RANKED, SCORE_LEVELS

SURENESS = ("confidence",)  # kinds that are high where a prediction is right


def auroc(wrong: np.ndarray, right: np.ndarray) -> float | None:
    """Return the probability that a wrong pixel scores above a right one, ties counting half; None without both.

    **Shape**: numbers of wrong and of right pixels at each level of the score, ascending.
    """
    wrong, right = wrong.astype(np.float64), right.astype(np.float64)
    if not (wrong.sum() and right.sum()):
        return None
    below = np.cumsum(right) - right
    return float((wrong * (below + right / 2)).sum() / (wrong.sum() * right.sum()))


def average_precision(wrong: np.ndarray, right: np.ndarray) -> float | None:
    """Return the mean precision over all wrong pixels, from the highest score on; None without wrong pixels.

    **Shape**: as for ``auroc``.
    """
    if not wrong.sum():
        return None
    found = np.cumsum(wrong[::-1], dtype=np.float64)
    seen = np.cumsum((wrong + right)[::-1], dtype=np.float64)
    return float((wrong[::-1] * found / np.maximum(seen, 1)).sum() / wrong.sum())


class ErrorRanking:
    """Counts wrong and right pixels by the level of a score of ``kind``."""

    def __init__(self, kind: str) -> None:
        if kind not in RANKED:
            raise ValueError(f"{kind!r} is no score")
        self.kind = kind
        self.counts = torch.zeros(2, SCORE_LEVELS, dtype=torch.int64)

    def add(self, stored: np.ndarray, wrong: np.ndarray, counted: np.ndarray) -> None:
        """Count one image: stored score (uint16), where its mask is wrong, and which pixels have a label; H x W each."""
        levels = stored[counted].astype(np.int64)
        if self.kind in SURENESS:
            levels = SCORE_LEVELS - 1 - levels
        bins = levels + SCORE_LEVELS * wrong[counted]
        self.counts += torch.from_numpy(np.bincount(bins, minlength=2 * SCORE_LEVELS)).reshape(2, SCORE_LEVELS)

    def finish(self) -> dict[str, float | None]:
        """Gather all ranks' counts and return ``auroc`` and ``average_precision`` on every rank."""
        counts = self.counts.clone()
        all_reduce(counts)
        right, wrong = counts.numpy()
        return dict(auroc=auroc(wrong, right), average_precision=average_precision(wrong, right))
