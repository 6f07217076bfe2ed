"""How well earlier snapshots of a training agree with its last model on an image; Yang et al., ST++, CVPR 2022, Sec. 3.3.

| paper | here | shape |
|---|---|---|
| K models saved at even distances, the last one M_K | ``snapshots`` and ``last`` | K - 1 and 1 |
| M_ij: mask of image i by model j | ``mask`` of a ``Prediction`` | H x W |
| stability s_i | what ``Agreement`` returns | one for each image |

The paper sums over the K - 1 earlier models; here it is their mean, as in the official implementation, so that it lies in
[0, 1]. All models predict in the same way, whatever that is; there, whole images without test-time augmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslseg.inference.predictor import Prediction, Predictor


def mean_iou(mask: Tensor, other: Tensor, *, num_classes: int) -> float:
    """Return the mean IoU of two masks over the classes that either of them has.

    **Shape**: H x W, H x W of class indices.
    """
    pairs = torch.bincount(mask.flatten() * num_classes + other.flatten(), minlength=num_classes**2)
    counts = pairs.reshape(num_classes, num_classes).cpu().numpy()
    intersection = counts.diagonal()
    union = counts.sum(axis=0) + counts.sum(axis=1) - intersection
    present = union > 0
    return float(np.mean(intersection[present] / union[present]))


class Agreement:
    """Rates images by the agreement of snapshots with the last model.

    Args:
        last: predicts with the last model; None where the predictions to rate are its own.
    """

    def __init__(self, snapshots: Sequence[Predictor], last: Predictor | None, *, num_classes: int) -> None:
        self.snapshots, self.last, self.num_classes = tuple(snapshots), last, num_classes

    def __call__(self, samples: Sequence[dict[str, Any]], predictions: Sequence[Prediction]) -> list[float]:
        """Return s_i of each packed sample, of which ``predictions`` are those that are stored."""
        reference = [found.mask for found in (self.last(samples) if self.last is not None else predictions)]
        agreements = [
            [
                mean_iou(found.mask, mask, num_classes=self.num_classes)
                for found, mask in zip(made, reference, strict=True)
            ]
            for made in (snapshot(samples) for snapshot in self.snapshots)
        ]
        return [float(np.mean(values)) for values in zip(*agreements, strict=True)]  # s_i
