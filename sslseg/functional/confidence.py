"""The confidence and the entropy of predictions, pixel by pixel."""

from __future__ import annotations

import math

from torch import Tensor


def confidence(probabilities: Tensor) -> Tensor:
    """Return the largest class probability of each pixel.

    **Shape**: N x C x H x W in [0, 1] -> N x H x W in [1 / C, 1].
    """
    return probabilities.amax(dim=1)


def normalized_entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy of each pixel's class distribution, divided by its maximum log C.

    **Shape**: N x C x H x W in [0, 1] -> N x H x W in [0, 1]. ``0 log 0`` is 0.
    """
    log_probabilities = probabilities.clamp_min(1e-12).log()
    entropy = -(probabilities * log_probabilities).sum(dim=1)
    return (entropy / math.log(probabilities.shape[1])).clamp(0.0, 1.0)
