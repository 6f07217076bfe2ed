"""The decoder of GuidedMix-Net: a U-Net whose blocks transfer information between all positions of a feature (MITrans).

Tu et al., GuidedMix-Net, Sec. 3.2, Fig. 4 and Sec. 4.2.

| paper | here | shape |
|---|---|---|
| v_j, Eq. (4); v_{j-1} | ``feature``; ``skip`` | N x C x h x w; N x S x f h x f w |
| Q, K; V | ``query``, ``key``; ``value`` | N x h w x C / 2; N x h w x C |
| v'_j, Eq. (5) | ``attention(feature)`` | N x C x h x w |

Choices where the paper is silent:
- D is divided by the square root of Q's channels, as in mmcv's non-local block, and A sums to 1 over all positions m:
  that is the division by C(x). V starts at zero, so that the block starts as the identity, as non-local blocks do.
- "Several convolutional layers": 1 x 1 before PixelShuffle, then two of 3 x 3 on its output and the skip connection.
- The logits are at the resolution of v_1 and are interpolated, as those of every mmseg head.
- Without attention (Table 2) the rest of the block stays: Sec. 4.2 counts skips and PixelShuffle as the decoder's.
- If v_j is as large as v_{j-1} (a dilated backbone; see ``strides``), nothing is upsampled. If a size is not divisible
  by 2, the upsampled feature has a row or column too many, because the stride of the backbone rounds up; it is cut off
  at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.upsample import PixelShufflePack
from mmengine.model import BaseModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sslseg.compat import select_inputs
from sslseg.errors import UserError
from sslseg.registry import MODELS


class NonLocal(BaseModule):
    """Add to each position the features of all positions, weighted with their correlation.

    **Shape**: N x C x h x w -> the same. The h w x h w weights need not be in memory together.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, max(channels // 2, 1), 1)
        self.key = nn.Conv2d(channels, max(channels // 2, 1), 1, bias=False)  # softmax would cancel it
        self.value = nn.Conv2d(channels, channels, 1)
        for parameter in self.value.parameters():
            nn.init.zeros_(parameter)

    def forward(self, feature: Tensor) -> Tensor:
        query, key, value = (layer(feature).flatten(2).mT for layer in (self.query, self.key, self.value))
        gathered = scaled_dot_product_attention(query, key, value)
        return gathered.mT.reshape(feature.shape) + feature  # Eq. (5)


class MITrans(BaseModule):
    """Attend within a feature, upsample it and fuse it with the next lower level.

    Args:
        in_channels, skip_channels, channels: of v_j, of v_{j-1} and of the result.
        factor: how many times v_{j-1} is as high as v_j.
        attention: False leaves Eq. (5) out.
        norm_cfg: of the convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        channels: int,
        *,
        factor: int,
        attention: bool,
        norm_cfg: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        self.attention = NonLocal(in_channels) if attention else nn.Identity()
        self.enlarge = PixelShufflePack(in_channels, channels, factor, upsample_kernel=1)
        self.fuse = nn.Sequential(
            ConvModule(channels + skip_channels, channels, 3, padding=1, norm_cfg=norm_cfg),
            ConvModule(channels, channels, 3, padding=1, norm_cfg=norm_cfg),
        )

    def forward(self, feature: Tensor, skip: Tensor) -> Tensor:
        """**Shape**: N x C x h x w and N x S x H x W -> N x ``channels`` x H x W."""
        upsampled = self.enlarge(self.attention(feature)).relu()
        height, width = skip.shape[-2:]
        return self.fuse(torch.cat((upsampled[..., :height, :width], skip), dim=1))


@MODELS.register_module()
class MITransHead(BaseDecodeHead):
    """Decode from the deepest feature to the finest, one MITrans block for each level.

    Args:
        in_channels: of the features, the finest first; ``in_index`` names them.
        strides: of the features, in pixels of the image.
        attention: False: a plain U-Net decoder with PixelShuffle.

    **Shape**: features of ``in_index`` -> N x num_classes x (size of the finest).
    """

    def __init__(
        self, *, in_channels: Sequence[int], strides: Sequence[int], attention: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(in_channels=in_channels, input_transform="multiple_select", **kwargs)
        if len(strides) != len(in_channels) or any(coarse % fine for fine, coarse in pairwise(strides)):
            raise UserError(
                f"model.decode_head.strides {tuple(strides)} do not fit {len(in_channels)} features, the finest first;"
                " give one for each, each a multiple of the one before"
            )
        self.blocks = nn.ModuleList()
        deep = in_channels[-1]
        for level in range(len(in_channels) - 1, 0, -1):
            factor = strides[level] // strides[level - 1]
            self.blocks.append(
                MITrans(
                    deep,
                    in_channels[level - 1],
                    self.channels,
                    factor=factor,
                    attention=attention,
                    norm_cfg=self.norm_cfg,
                )
            )
            deep = self.channels

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        *skips, feature = select_inputs(self, inputs)
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            feature = block(feature, skip)
        return self.cls_seg(feature)
