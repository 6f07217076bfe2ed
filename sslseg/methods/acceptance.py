"""Which classes the pseudo-labels have, and how many of them a method accepts, since the last record of the history."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor

STRIDE = 2  # every second row and column is enough for fractions of many images


class Acceptance:
    """Counts of pixels by class, on the device; nothing is read, so nothing synchronizes, before ``take``."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts: Tensor | None = None

    def add(self, classes: Tensor, accepted: Tensor, valid: Tensor) -> None:
        """Count pseudo-labels.

        Args:
            accepted: the pixels that the method learns from.
            valid: the pixels of the images; others do not count.

        **Shape**: N x H x W each; classes int64, the others bool.
        """
        self._count((classes + self.num_classes * accepted).where(valid, 3 * self.num_classes))

    def add_labels(self, labels: Tensor) -> None:
        """Count labels, N x H x W int64, which separate a class that has died out from one that does not occur.

        Values outside [0, number of classes) do not count.
        """
        self._count((labels + 2 * self.num_classes).where(labels < self.num_classes, 3 * self.num_classes))

    @torch.no_grad()
    def _count(self, bins: Tensor) -> None:
        if self.counts is None:
            self.counts = torch.zeros(3 * self.num_classes + 1, device=bins.device)
        flat = bins[..., ::STRIDE, ::STRIDE].flatten()
        self.counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=self.counts.dtype))

    def take(self) -> dict[str, Any]:
        """Return the counts of all ranks since the last call as fractions; to be called on every rank at once.

        Returns:
            ``predicted``: by class, the fraction of valid pixels that has it as pseudo-label. ``accepted``: by class, the
            accepted fraction of those, None where there are none. ``labels``: by class, the fraction of labeled pixels.
            Nothing before the first pseudo-label.
        """
        if self.counts is None:
            return {}
        all_reduce(self.counts)
        rejected, accepted, labels = self.counts[:-1].double().reshape(3, self.num_classes).tolist()
        self.counts = None
        total = sum(rejected) + sum(accepted)
        pairs = list(zip(rejected, accepted, strict=True))
        return dict(
            predicted=[round(sum(pair) / max(total, 1.0), 5) for pair in pairs],
            accepted=[round(pair[1] / sum(pair), 5) if sum(pair) else None for pair in pairs],
            labels=[round(value / max(sum(labels), 1.0), 5) for value in labels],
        )
