"""How good the pseudo-labels are that a method would learn from, where the hidden labels are known."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor


class PseudoLabelMetric:
    """Coverage and precision of accepted pseudo-labels, in all and by class, over labeled pixels of images that are not learned from."""

    def __init__(self, num_classes: int, *, ignore_index: int) -> None:
        self.ignore_index = ignore_index
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64)  # predicted, accepted, accepted and correct

    def add(self, mask: Tensor, accepted: Tensor, label: Tensor) -> None:
        """Judge one image.

        **Shape**: mask and label H x W integer, accepted H x W bool.
        """
        known = label != self.ignore_index
        for row, chosen in enumerate((known, known & accepted, known & accepted & (mask == label))):
            self.counts[row] += torch.bincount(mask[chosen].long(), minlength=self.counts.shape[1])

    def finish(self, images: int) -> dict[str, Any]:
        """Return fractions over the images of all ranks; to be called on every rank at once.

        Returns:
            ``images``; ``coverage``: the accepted fraction of the pixels; ``precision``: the correct fraction of the accepted
            ones, None where none is accepted; ``coverage_by_class`` and ``precision_by_class``: the same of the pixels that
            are predicted as each class.
        """
        counts = self.counts.clone()
        all_reduce(counts)
        predicted, accepted, correct = counts.tolist()
        return dict(
            images=images,
            coverage=_fraction(sum(accepted), sum(predicted)),
            precision=_fraction(sum(correct), sum(accepted)),
            coverage_by_class=list(map(_fraction, accepted, predicted)),
            precision_by_class=list(map(_fraction, correct, accepted)),
        )


def _fraction(part: int, whole: int) -> float | None:
    return round(part / whole, 5) if whole else None
