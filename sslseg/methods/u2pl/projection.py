"""The representation head g: the features before a segmentor's classifier, as vectors to compare.

Wang et al., CVPR 2022, Sec. 4.1: two Conv-BN-ReLU blocks that keep the resolution, with 256-dimensional output. As in
the official implementation, a 1 x 1 convolution follows; without it no coordinate could be negative.
"""

from __future__ import annotations

from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from sslseg.networks.logits import classifier_width


class Projection(nn.Sequential):
    """Map features to vectors of length 1.

    **Shape**: N x ``channels`` x h x w -> N x ``dim`` x h x w.
    """

    def __init__(self, head: BaseDecodeHead, dim: int) -> None:
        def block(inputs: int) -> ConvModule:
            return ConvModule(inputs, dim, 3, padding=1, norm_cfg=head.norm_cfg or dict(type="BN"))

        super().__init__(block(classifier_width(head)), block(dim), nn.Conv2d(dim, dim, 1))

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.normalize(super().forward(features).float(), dim=1)
