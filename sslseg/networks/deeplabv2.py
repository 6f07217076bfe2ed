"""The DeepLabV2 decode head: atrous spatial pyramid pooling whose branches are summed.

Chen et al., DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully Connected
CRFs, TPAMI 2018, Sec. 3.2 and Fig. 7 (ASPP-L: rates 6, 12, 18, 24). mmseg has the ASPP of DeepLabV3 only, which
concatenates normalized branches. Here each branch is one 3 x 3 atrous convolution from the feature to the logits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from sslseg.compat import select_inputs
from sslseg.registry import MODELS


@MODELS.register_module()
class DeepLabV2Head(BaseDecodeHead):
    """Sum of parallel atrous classifiers on one feature map; as in every mmseg head, ``conv_seg`` is the classifier.

    **Shape**: N x in_channels x H x W -> N x num_classes x H x W.
    """

    def __init__(self, *, in_channels: int, dilations: Sequence[int] = (6, 12, 18, 24), **kwargs: Any) -> None:
        # mmseg's own init_cfg expects one convolution under the name conv_seg; AtrousSum initializes itself.
        super().__init__(in_channels=in_channels, channels=in_channels, dropout_ratio=0.0, init_cfg=None, **kwargs)
        self.dilations = tuple(dilations)
        self.conv_seg = AtrousSum(in_channels, self.out_channels, self.dilations)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.cls_seg(select_inputs(self, inputs))


class AtrousSum(nn.ModuleList):
    """Sum of 3 x 3 atrous convolutions, one for each rate."""

    def __init__(self, in_channels: int, out_channels: int, dilations: Sequence[int]) -> None:
        super().__init__(nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate) for rate in dilations)
        for branch in self:
            for name, parameter in branch.named_parameters():
                nn.init.normal_(parameter, std=0.01) if name == "weight" else nn.init.zeros_(parameter)

    def forward(self, feature: Tensor) -> Tensor:
        return functools.reduce(torch.add, (branch(feature) for branch in self))
