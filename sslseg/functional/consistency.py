"""Distances between predictions and targets, averaged over the pixels that count; and how a weight ramps up."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Return the mean cross entropy of the counted pixels, 0 if there is none.

    **Shape**: logits N x C x H x W; targets N x C x H x W (distributions) or N x H x W (classes); counted N x H x W.
    """
    if targets.dim() == logits.dim():
        losses = -(targets * logits.float().log_softmax(dim=1)).sum(dim=1)
    else:
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return mean(losses, counted)


def squared_error(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Return the squared distance of softmax and target, averaged over classes and counted pixels.

    **Shape**: logits and targets N x C x H x W; counted N x H x W.
    """
    return mean((logits.float().softmax(dim=1) - targets).square().mean(dim=1), counted)


def hard_cross_entropy(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Return the mean cross entropy with the most probable class of each counted pixel's target.

    **Shape**: logits and targets N x C x H x W; counted N x H x W.
    """
    return cross_entropy(logits, targets.argmax(dim=1), counted)


DISTANCES = {"mse": squared_error, "ce": cross_entropy, "hard": hard_cross_entropy}


def mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean, 0 where no weight is; without waiting for the device.

    **Shape**: N x H x W each -> scalar.
    """
    weights = weights.to(values.dtype)
    # A value that does not count may be infinite or NaN.
    return (values.where(weights > 0, 0.0) * weights).sum() / weights.sum().clamp_min(1e-6)


def sigmoid_rampup(progress: float, length: float) -> float:
    """Return exp(-5 (1 - t)^2), t growing from 0 to 1 over the first ``length``; Laine and Aila, ICLR 2017, Sec. 2.1."""
    if length <= 0:
        return 1.0
    remaining = 1.0 - min(progress / length, 1.0)
    return math.exp(-5.0 * remaining * remaining)
