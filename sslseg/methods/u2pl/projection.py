"""The representation head g: vectors to compare, made of the features that f, the segmentation head, reads too.

Wang et al., CVPR 2022, Sec. 4.1: f and g are two Conv-BN-ReLU blocks each, side by side on the output of ASPP; those of g
keep the resolution and end in 256 dimensions. As in the official implementation, a 1 x 1 convolution follows; without it no
coordinate could be negative. A decode head without blocks of f's own gives what enters its classifier.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import DepthwiseSeparableASPPHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from sslseg.errors import UserError

# The module of f's own blocks in mmseg's heads. Another head's class names its own as ``classifier_blocks``.
CLASSIFIER_BLOCKS: dict[type, str] = {DepthwiseSeparableASPPHead: "sep_bottleneck"}


def classifier_blocks(head: BaseDecodeHead) -> nn.Module | None:
    """Return the module of f's own blocks, None for a head whose class names none."""
    known = [CLASSIFIER_BLOCKS[cls] for cls in type(head).__mro__ if cls in CLASSIFIER_BLOCKS]
    name = getattr(head, "classifier_blocks", None) or next(iter(known), None)
    return None if name is None else head.get_submodule(name)


def shared_width(head: BaseDecodeHead) -> int:
    """Return how many channels f and g read; a head without a single classifier is a UserError."""
    if not isinstance(getattr(head, "conv_seg", None), nn.Module):
        raise UserError(
            f"model.decode_head {type(head).__name__} has no single classifier whose features could be compared; use a"
            " model with another head"
        )
    blocks = classifier_blocks(head)
    if blocks is None:
        return head.channels
    return next(module.in_channels for module in blocks.modules() if isinstance(module, nn.Conv2d))


@contextlib.contextmanager
def shared_features(head: BaseDecodeHead) -> Iterator[list[Tensor]]:
    """Collect what f and g read whenever a decode head is called: the input of f's blocks, or else of the classifier."""
    seen: list[Tensor] = []
    choices = (classifier_blocks(head), head.dropout, head.conv_seg)
    first = next(module for module in choices if module is not None)
    handle = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def replace_old_weights(projection: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Replace weights of version 0.1, which are for what enters the classifier; called before they are loaded.

    Prediction does not need them, and its runs are not resumed: they lack settings of today.
    """
    own = {prefix + name: value for name, value in projection.state_dict().items()}
    if any(name in state and state[name].shape != value.shape for name, value in own.items()):
        state.update(own)


class Projection(nn.Sequential):
    """Map features to vectors z: Eq. (12) averages them as they are, only the cosine of Eq. (4) makes their length 1.

    **Shape**: N x ``shared_width`` x h x w -> N x ``dim`` x h x w.
    """

    def __init__(self, head: BaseDecodeHead, dim: int) -> None:
        def block(inputs: int) -> ConvModule:
            return ConvModule(inputs, dim, 3, padding=1, norm_cfg=head.norm_cfg or dict(type="BN"))

        super().__init__(block(shared_width(head)), block(dim), nn.Conv2d(dim, dim, 1))
        self.register_load_state_dict_pre_hook(replace_old_weights)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).float()
