"""The projection head: the features before a segmentor's classifier, as vectors to be compared.

Wang et al., CVPR 2022, Sec. 4.1: two Conv-BN-ReLU blocks that keep the resolution. The paper gives their result as 256-d;
the authors' program ends with a 1 x 1 convolution after them, without which no coordinate could be negative: so does this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from sslseg.errors import UserError


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


def classifier_width(head: BaseDecodeHead) -> int:
    """Return how many channels the classifier of a decode head reads; a head without one is a UserError."""
    if not isinstance(getattr(head, "conv_seg", None), nn.Module):
        raise UserError(
            f"model.decode_head {type(head).__name__} has no single classifier whose features could be compared; use a"
            " model with another head"
        )
    return head.channels


@contextlib.contextmanager
def before_classifier(head: BaseDecodeHead) -> Iterator[list[Tensor]]:
    """Collect what enters the classifier of a decode head (before its dropout) whenever the head is called."""
    seen: list[Tensor] = []
    first = head.dropout if head.dropout is not None else head.conv_seg
    handle = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()
