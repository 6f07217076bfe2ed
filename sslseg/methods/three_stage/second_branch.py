"""The second branch of a multi-task network: a decode head of its own and, for g-hat, a last stage of its own.

Three-stage self-training, Sec. III-B and Table VII: g-tilde shares all blocks of the segmentor but the last, its ASPP;
g-hat all but the last two, with half the channels in its own last stage (``conv6``). The paper shows ResNet-101; here
a backbone is cut before the last stage that it returns. ResNet and its variants repeat their own last stage; MiT and Swin
get a one-stage transformer of the same kind on the shared feature. Any other backbone is cut if it has a method
``narrow_last_stage(width)`` that returns a module and its number of channels, as ``EfficientNetLite`` has.

g-hat's stage is random, so it is trained as a head is: at the head's learning rate, and with BatchNorm that learns and takes
the statistics of its batch even where a recipe freezes the backbone's, which are those of its pretraining. The paper does not
say which.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mmengine.model import BaseModule
from mmseg.models.backbones import MixVisionTransformer, ResNet, SwinTransformer
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from sslseg.errors import UserError
from sslseg.registry import MODELS

KAIMING = [
    dict(type="Kaiming", layer="Conv2d"),
    dict(type="Constant", val=1, layer=["_BatchNorm", "GroupNorm"]),
]


class SecondBranch(BaseModule):
    """A second head on the features of ``segmentor``.

    Args:
        segmentor: the shared network.
        config: its config.
        own_stage: give the branch a last stage of its own (g-hat); otherwise it shares the whole backbone (g-tilde).
        width: channels of that stage, as a fraction of the segmentor's.

    Raises:
        UserError: the backbone cannot be cut before its last stage.
    """

    def __init__(self, segmentor: EncoderDecoder, config: Any, *, own_stage: bool, width: float = 0.5) -> None:
        super().__init__()
        head = copy.deepcopy(config["decode_head"])
        self.stage: nn.Module | None = None
        if own_stage:
            check_backbone(segmentor, config)
            self.stage, channels = last_stage(segmentor.backbone, config["backbone"], width)
            head["in_channels"] = replace_last(head["in_channels"], channels)
        self.head = MODELS.build(head)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the branch's logits from the shared features, as the decode head gives them."""
        if self.stage is not None:
            features = [*features[:-1], self.stage(features[-2])]
        return self.head(features)


def check_backbone(segmentor: EncoderDecoder, config: Any) -> None:
    """Raise UserError unless the last stage can be replaced between the backbone's features and the head."""
    name = config["backbone"]["type"]
    if segmentor.with_neck:
        _refuse(name, f"a neck ({config['neck']['type']}) lies between it and the head")
    outputs = tuple(getattr(segmentor.backbone, "out_indices", ()))
    if len(outputs) < 2 or outputs[-2] != outputs[-1] - 1:
        _refuse(name, f"its outputs {outputs} lack the stage before the last; set model.backbone.out_indices")
    index = config["decode_head"].get("in_index", -1)
    last = index[-1] if isinstance(index, (list, tuple)) else index
    if last not in (-1, len(outputs) - 1):
        _refuse(name, f"the head reads feature {last}, not the last stage")


def _refuse(name: str, reason: str) -> NoReturn:
    raise UserError(
        f"backbone {name} cannot be cut before its last stage: {reason}; or share all of it with"
        " --set method.branch=g-tilde"
    )


def replace_last(in_channels: Any, channels: int) -> Any:
    """Return a head's ``in_channels`` with another number for the last stage."""
    if isinstance(in_channels, (list, tuple)):
        return [*in_channels[:-1], channels]
    return channels


def last_stage(backbone: nn.Module, config: Any, width: float) -> tuple[nn.Module, int]:
    """Build a last stage of ``width`` times the backbone's channels; return it and its number of output channels.

    **Shape** of the stage: the feature before the last -> the last feature with fewer channels.
    """
    own: Callable[[float], tuple[nn.Module, int]] | None = getattr(backbone, "narrow_last_stage", None)
    if own is not None:
        return own(width)
    if isinstance(backbone, ResNet):
        return _residual(backbone, width)
    if isinstance(backbone, MixVisionTransformer):
        return _mix_transformer(backbone, config, width)
    if isinstance(backbone, SwinTransformer):
        return _swin(backbone, config, width)
    _refuse(
        config["type"], "it has no narrow_last_stage, and is neither a ResNet, MixVisionTransformer nor SwinTransformer"
    )


def _residual(backbone: ResNet, width: float) -> tuple[nn.Module, int]:
    number = backbone.out_indices[-1]
    expansion = backbone.block.expansion
    planes = round(backbone.base_channels * 2**number * width)
    stage = backbone.make_res_layer(
        block=backbone.block,
        inplanes=backbone.base_channels * 2 ** (number - 1) * expansion,
        planes=planes,
        num_blocks=backbone.stage_blocks[number],
        stride=backbone.strides[number],
        dilation=backbone.dilations[number],
        style=backbone.style,
        avg_down=backbone.avg_down,
        with_cp=backbone.with_cp,
        conv_cfg=backbone.conv_cfg,
        norm_cfg=dict(backbone.norm_cfg, requires_grad=True),
        multi_grid=backbone.multi_grid,
        contract_dilation=backbone.contract_dilation,
        init_cfg=KAIMING,
    )
    return stage, planes * expansion


class OnlyFeature(BaseModule):
    """A one-stage transformer that returns its only feature, not a list.

    Not called a backbone: recipes give parameters of that name the rate of pretrained ones.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.register_load_state_dict_pre_hook(_rename_backbone)

    def forward(self, feature: Tensor) -> Tensor:
        return self.transformer(feature)[0]


def _rename_backbone(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Accept checkpoints of version 0.1, in which the transformer was called a backbone."""
    old = prefix + "backbone."
    for name in [name for name in state_dict if name.startswith(old)]:
        state_dict[f"{prefix}transformer.{name.removeprefix(old)}"] = state_dict.pop(name)


def _mix_transformer(backbone: MixVisionTransformer, config: Any, width: float) -> tuple[nn.Module, int]:
    heads, number = backbone.num_heads, backbone.out_indices[-1]
    narrow = max(round(heads[number] * width), 1)
    one = dict(
        config,
        in_channels=backbone.embed_dims * heads[number - 1],
        embed_dims=backbone.embed_dims,
        num_stages=1,
        out_indices=(0,),
        num_layers=[backbone.num_layers[number]],
        num_heads=[narrow],
        **{key: [getattr(backbone, key)[number]] for key in ("patch_sizes", "strides", "sr_ratios")},
    )
    return OnlyFeature(MODELS.build(_untrained(one))), backbone.embed_dims * narrow


def _swin(backbone: SwinTransformer, config: Any, width: float) -> tuple[nn.Module, int]:
    number = backbone.out_indices[-1]
    heads = config.get("num_heads", (3, 6, 12, 24))[number]
    narrow = max(round(heads * width), 1)
    channels = backbone.num_features[number] // heads * narrow
    # Patch merging (2 x 2 pixels into one) is a patch embedding of the shared feature.
    one = dict(
        config,
        in_channels=backbone.num_features[number - 1],
        embed_dims=channels,
        patch_size=2,
        strides=(2,),
        depths=(config.get("depths", (2, 2, 6, 2))[number],),
        num_heads=(narrow,),
        out_indices=(0,),
        use_abs_pos_embed=False,
        frozen_stages=-1,
    )
    return OnlyFeature(MODELS.build(_untrained(one))), channels


def _untrained(config: dict[str, Any]) -> dict[str, Any]:
    """Remove the pretrained weights, which have the full width, and let normalization layers learn."""
    kept = {key: value for key, value in config.items() if key not in ("pretrained", "init_cfg")}
    return kept | (dict(norm_cfg=dict(kept["norm_cfg"], requires_grad=True)) if kept.get("norm_cfg") else {})
