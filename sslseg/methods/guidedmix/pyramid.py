"""The pyramid pooling module as a neck: the end of an encoder, for any head that reads its features.

Zhao et al., Pyramid Scene Parsing Network, CVPR 2017, Sec. 3.2; GuidedMix-Net, Sec. 4.2, puts it after the last layer
of a ResNet. mmseg has it only inside its PSPNet head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmseg.models.decode_heads.psp_head import PPM
from torch import Tensor

from sslseg.registry import MODELS


@MODELS.register_module()
class PyramidPooling(BaseModule):
    """Replace a backbone's last feature by its fused pyramid; the others stay as they are.

    Args:
        in_channels: of the last feature.
        channels: of the fused pyramid, and of each of its scales.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        norm_cfg: dict[str, Any] | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        relu = dict(type="ReLU")
        self.pyramid = PPM(pool_scales, in_channels, channels, None, norm_cfg, relu, align_corners)
        width = in_channels + len(pool_scales) * channels
        self.fuse = ConvModule(width, channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=relu)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """**Shape**: the last feature N x ``in_channels`` x h x w -> N x ``channels`` x h x w."""
        *levels, last = features
        return *levels, self.fuse(torch.cat((last, *self.pyramid(last)), dim=1))
