"""The fully convolutional discriminator of AdvSSL, and the classifier of rotations of S4L: both read a dense prediction.

Hung et al., Adversarial Learning for Semi-Supervised Semantic Segmentation, BMVC 2018, Sec. 3.2: five convolutions of 4 x 4
with stride 2 and 64, 128, 256, 512 and 1 kernels, LeakyReLU (0.2) after each but the last, without BatchNorm, then
interpolation to the size of the input.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn


def strided(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Return convolutions that halve the size, each with LeakyReLU."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = width
    return nn.Sequential(*layers)


class Discriminator(nn.Module):
    """D(T(x)): the logit of each pixel being true, not predicted.

    Args:
        channels: of the prediction.
    """

    def __init__(self, channels: int, *, width: Annotated[int, "Kernels of the first layer."] = 64) -> None:
        super().__init__()
        self.layers = strided(channels, (width, 2 * width, 4 * width, 8 * width))
        self.last = nn.Conv2d(8 * width, 1, 4, stride=2, padding=1)

    def forward(self, predictions: Tensor) -> Tensor:
        """**Shape**: N x C x H x W -> N x 1 x H x W float32."""
        logits = self.last(self.layers(predictions)).float()
        return F.interpolate(logits, predictions.shape[-2:], mode="bilinear", align_corners=False)


class RotationClassifier(nn.Module):
    """Classify from a segmentor's logits by how many quarters of a circle its image was rotated.

    The GCT paper only says that a four-way classifier follows the task model: here three halving convolutions, the mean of
    all pixels and a linear layer.
    """

    def __init__(self, channels: int, *, width: Annotated[int, "Kernels of the first layer."] = 64) -> None:
        super().__init__()
        self.layers = strided(channels, (width, 2 * width, 4 * width))
        self.last = nn.Linear(4 * width, 4)

    def forward(self, logits: Tensor) -> Tensor:
        """**Shape**: N x C x H x W -> N x 4 float32."""
        return self.last(self.layers(logits).mean(dim=(2, 3))).float()
