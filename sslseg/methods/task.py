"""What a method needs to know about the task: activation, valid pixels, the metric of the best checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Segmentation:
    """Semantic segmentation: softmax, the segmentor's own losses, mIoU.

    Attributes:
        metric: the score that chooses the best checkpoint.
    """

    metric = "mIoU"

    def __init__(self, *, num_classes: int, ignore_index: int) -> None:
        self.channels, self.ignore_index = num_classes, ignore_index

    def activate(self, output: Tensor) -> Tensor:
        """Return the prediction of a model's output.

        **Shape**: N x C x H x W -> the same, float32 in [0, 1].
        """
        return output.float().softmax(dim=1)

    def valid_mask(self, labeled: dict[str, Any]) -> Tensor:
        """Return where a labeled view has a label.

        **Shape**: -> N x 1 x H x W bool.
        """
        return (labeled["labels"] != self.ignore_index)[:, None]
