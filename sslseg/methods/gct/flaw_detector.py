"""GCT's flaw detector: where a dense prediction for an image is wrong.

Ke et al., ECCV 2020, Appendix B: eight convolutions of 4 x 4 with strides 2, 2, 1, 2, 1, 2, 1, 2 and padding "same", each
but the last with BatchNorm and LeakyReLU (0.2), then bilinear interpolation with align_corners to the size of the input.
Two departures of the official implementation: half BatchNorm, half InstanceNorm is the option ``norm="ibn"``; its padding of
1, which costs a pixel a layer, is not copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from torch import Tensor, nn

from sslseg.errors import UserError
from sslseg.functional.consistency import mean
from sslseg.settings import checked

WIDTHS, STRIDES = (1, 2, 2, 4, 4, 8, 8), (2, 2, 1, 2, 1, 2, 1, 2)


class HalfInstanceNorm(nn.Module):
    """BatchNorm of the first half of the channels, InstanceNorm without weights of the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = channels // 2
        self.batch = nn.BatchNorm2d(self.first)
        self.instance = nn.InstanceNorm2d(channels - self.first)

    def forward(self, features: Tensor) -> Tensor:
        parts = features[:, : self.first], features[:, self.first :]
        return torch.cat((self.batch(parts[0]), self.instance(parts[1])), dim=1)


class FlawDetector(nn.Module):
    """F(x, T(x)): how wrong the prediction is at each pixel; about 0 where it is right and 1 where it is wrong.

    Args:
        channels: of the prediction; those of the image are added.
    """

    @checked("method.detector")
    def __init__(
        self,
        channels: int,
        *,
        width: Annotated[int, "Kernels of the first layer; the others have up to eight times as many."] = 64,
        norm: Annotated[
            Literal["bn", "ibn"], "BatchNorm, or half BatchNorm, half InstanceNorm as in the official implementation."
        ] = "bn",
        strides: Annotated[
            Sequence[int],
            "Strides of the eight layers; these make 10 x 10 values of a crop of 321, but 3 x 3 of one of 96.",
        ] = STRIDES,
    ) -> None:
        super().__init__()
        if len(strides) != len(WIDTHS) + 1 or not all(isinstance(stride, int) and stride > 0 for stride in strides):
            raise UserError(
                f"method.detector.strides {strides!r} are not eight positive numbers; the paper's are {STRIDES}"
            )
        layers: list[nn.Module] = []
        inputs = channels + 3
        for factor, stride in zip(WIDTHS, strides[:-1], strict=True):
            outputs = width * factor
            normalization = nn.BatchNorm2d(outputs) if norm == "bn" else HalfInstanceNorm(outputs)
            layers += [Conv2dAdaptivePadding(inputs, outputs, 4, stride), normalization, nn.LeakyReLU(0.2)]
            inputs = outputs
        self.layers = nn.Sequential(*layers, Conv2dAdaptivePadding(inputs, 1, 4, strides[-1]))

    def forward(self, images: Tensor, predictions: Tensor) -> Tensor:
        """Return flaw maps of predictions: one of each image, or those of several models one after another.

        **Shape**: N x 3 x H x W normalized and K N x C x H x W -> K N x 1 x H x W float32, unbounded.
        """
        each = predictions.unflatten(0, (-1, len(images)))
        inputs = torch.cat((images.expand(len(each), *images.shape), each), dim=2).flatten(0, 1)
        maps = self.layers(inputs).float()
        return F.interpolate(maps, images.shape[-2:], mode="bilinear", align_corners=True)

    def loss(self, images: Tensor, predictions: Tensor, targets: Tensor, valid_mask: Tensor) -> Tensor:
        """Return L_F, Eq. (3), without its factor 1/2, averaged over the valid pixels.

        **Shape**: N x 3 x H x W; K N x C x H x W; targets and valid_mask K N x 1 x H x W -> scalar.
        """
        return mean((self(images, predictions.detach()) - targets).square(), valid_mask)
