"""Distances between predictions and targets, averaged over the valid pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, valid_mask: Tensor) -> Tensor:
    """Return the mean cross entropy of the valid pixels, 0 if there is none.

    **Shape**: logits N x C x H x W; targets N x C x H x W (distributions) or N x H x W (classes); valid_mask N x H x W.
    """
    if targets.dim() == logits.dim():
        losses = -(targets * logits.float().log_softmax(dim=1)).sum(dim=1)
    else:
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return mean(losses, valid_mask)


def squared_error(logits: Tensor, targets: Tensor, valid_mask: Tensor) -> Tensor:
    """Return the squared distance of softmax and target, averaged over classes and valid pixels.

    **Shape**: logits and targets N x C x H x W; valid_mask N x H x W.
    """
    return mean((logits.float().softmax(dim=1) - targets).square().mean(dim=1), valid_mask)


def hard_cross_entropy(logits: Tensor, targets: Tensor, valid_mask: Tensor) -> Tensor:
    """Return the mean cross entropy with the most probable class of each valid pixel's target.

    **Shape**: logits and targets N x C x H x W; valid_mask N x H x W.
    """
    return cross_entropy(logits, targets.argmax(dim=1), valid_mask)


DISTANCES = {"mse": squared_error, "ce": cross_entropy, "hard": hard_cross_entropy}


def mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean, 0 if all weights are 0; without synchronizing.

    **Shape**: any, the same for both -> scalar.
    """
    weights = weights.to(values.dtype)
    # A value of weight 0 may be infinite or NaN.
    return (values.where(weights > 0, 0.0) * weights).sum() / weights.sum().clamp_min(1e-6)
