"""The recipes of UniMatch's family, as built from the leaf configs, against tables of what was published."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from sslseg.config.build import TrainOptions, build_config
from sslseg.config.lengths import batch_counts
from sslseg.engine.build import optim_wrapper, transforms_of
from sslseg.inference import Protocol
from sslseg.registry import MODELS
from sslseg.splits.split import Split
from tests.methods.conftest import segmentor

# Dataset: crop, epochs, rate of the encoder, of the head, threshold, evaluation protocol.
PUBLISHED = {
    "voc": (321, 80, 1e-3, 1e-2, 0.95, "whole"),
    "voc_513": (513, 80, 1e-3, 1e-2, 0.95, "whole"),
    "cityscapes": (801, 240, 5e-3, 5e-3, 0.0, "slide 801x801 stride 534x534"),
}
# Config: dataset as above, depth, class, settings that are not the class's own.
LEAVES: dict[str, tuple[str, int, str, dict[str, Any]]] = {
    "unimatch/voc": ("voc", 101, "UniMatch", {}),
    "unimatch/voc_r50": ("voc", 50, "UniMatch", {}),
    "unimatch/voc_513": ("voc_513", 101, "UniMatch", {}),
    "unimatch/cityscapes": ("cityscapes", 101, "UniMatch", {}),
    "unimatch/cityscapes_r50": ("cityscapes", 50, "UniMatch", {}),
    "fixmatch/voc": ("voc", 101, "FixMatch", dict(decay=0.0, decay_start=1.0)),
    "fixmatch/cityscapes": ("cityscapes", 101, "FixMatch", dict(decay=0.0, decay_start=1.0)),
    "prevmatch/voc": ("voc", 101, "PrevMatch", {}),
    "prevmatch/voc_r50": ("voc", 50, "PrevMatch", {}),
    "prevmatch/cityscapes": ("cityscapes", 101, "PrevMatch", dict(interval="6 epochs", past_trust="mean")),
    "prevmatch/cityscapes_r50": ("cityscapes", 50, "PrevMatch", dict(interval="6 epochs", past_trust="mean")),
}
UNIMATCH = dict(weight=1.0, rampup=0.0, image_share=0.5, dropout=0.5, mix_prob=0.5)
METHODS: dict[str, dict[str, Any]] = {
    "UniMatch": UNIMATCH,
    "FixMatch": dict(weight=1.0, rampup=0.0, mix_prob=0.5),
    # The distance of copies is ours: the paper copies after epochs with a new best score.
    "PrevMatch": UNIMATCH
    | dict(memory=8, ensemble=3, past_threshold=0.9, past_weight=1.0, past_trust="threshold", interval="2 epochs"),
}
KEPT_PIXELS = 200_000  # OHEM in the official implementations, of the images of a rank
IMAGES_PER_RANK = {"UniMatch": 2, "FixMatch": 2, "PrevMatch": 4}


def built(split: Split, name: str, **options: Any) -> Any:
    return build_config(split, TrainOptions(config=name, **options))


def rates(config: Any) -> dict[str, float]:
    """Return the learning rate of every parameter, by name."""
    model = MODELS.build(dict(config.method, segmentor=segmentor()))
    optimizer = build_optim_wrapper(model, optim_wrapper(config)).optimizer
    names = {id(value): name for name, value in model.named_parameters()}
    return {names[id(value)]: group["lr"] for group in optimizer.param_groups for value in group["params"]}


@pytest.mark.parametrize("name", LEAVES)
def test_recipes_are_those_of_the_paper(toy_split: Split, name: str) -> None:
    row, depth, cls, own = LEAVES[name]
    crop, epochs, encoder, head, threshold, protocol = PUBLISHED[row]
    config = built(toy_split, name)
    schedule, data, model = config.schedule, config.data, config.model
    assert schedule.iterations == epochs * math.ceil(len(toy_split.unlabeled) / 8)
    assert batch_counts(config, ("labeled", "unlabeled")) == dict(labeled=8, unlabeled=8)
    assert (tuple(data.crop), tuple(data.scale), data.flip, data.cat_max_ratio) == ((crop, crop), (0.5, 2.0), 0.5, 1.0)
    assert data.get("rotation", 0.0) == 0
    optimizer = config.optimizer
    assert (optimizer.type, optimizer.momentum, optimizer.weight_decay) == ("SGD", 0.9, 1e-4)
    assert (schedule.power, schedule.warmup) == (0.9, 0.0)
    for parameter, rate in rates(config).items():
        if parameter.startswith("student."):
            assert rate == pytest.approx(encoder if parameter.startswith("student.backbone.") else head), parameter
    assert model.pretrained == f"open-mmlab://resnet{depth}_v1c"
    assert (model.backbone.type, model.backbone.depth, model.backbone.norm_eval) == ("ResNetV1c", depth, False)
    assert (model.backbone.norm_cfg.type, model.backbone.norm_cfg.requires_grad) == ("SyncBN", True)
    decoder = model.decode_head
    assert (tuple(decoder.dilations), decoder.channels, decoder.c1_channels) == ((1, 6, 12, 18), 256, 48)
    assert (decoder.dropout_ratio, decoder.align_corners, model.auxiliary_head) == (0.0, True, None)
    if row == "cityscapes":
        sampler = decoder.sampler
        assert (sampler.type, sampler.thresh) == ("OHEMPixelSampler", 0.7)
        assert sampler.min_kept * IMAGES_PER_RANK[cls] == KEPT_PIXELS
    else:
        assert "sampler" not in decoder
    assert str(Protocol(**config.evaluation)) == protocol
    method = dict(config.method)
    assert method.pop("type") == cls
    assert method == dict(threshold=threshold) | METHODS[cls] | own


@pytest.mark.parametrize("name", [name for name in LEAVES if name.startswith("unimatch/")])
def test_the_baseline_has_the_same_recipe_and_as_many_iterations(toy_split: Split, name: str) -> None:
    dataset, *rest = name.removeprefix("unimatch/").split("_")
    config, other = (built(toy_split, one) for one in (name, "_".join([f"supervised/{dataset}_unimatch", *rest])))
    assert other.method == dict(type="Supervised")
    for key in ("model", "schedule", "optimizer", "paramwise", "data", "views", "evaluation"):
        assert other.get(key) == config.get(key), key


def test_all_share_the_strong_view(toy_split: Split) -> None:
    jitter, gray, blur = transforms_of("strong_2", built(toy_split, "unimatch/voc"))
    values = [jitter[name] for name in ("prob", "brightness", "contrast", "saturation", "hue")]
    assert (jitter.type, values) == ("ColorJitter", [0.8, 0.5, 0.5, 0.5, 0.25])
    assert (gray.type, gray.prob) == ("RandomGray", 0.2)
    assert (blur.type, blur.prob, tuple(blur.sigma)) == ("RandomBlur", 0.5, (0.1, 2.0))
    for name in LEAVES:
        config = built(toy_split, name)
        assert transforms_of("strong", config) == [jitter, gray, blur]
        assert transforms_of("weak", config) == []


def test_the_output_stride_is_16(toy_split: Split) -> None:
    for name in ("unimatch/voc_r50", "unimatch/cityscapes_r50"):
        config = built(toy_split, name, pretrained="none")
        config.model.backbone.update(base_channels=8, stem_channels=8, norm_cfg=dict(type="BN"))
        backbone = MODELS.build(config.model.backbone)
        sizes = [level.shape[-1] for level in backbone(torch.zeros(1, 3, 96, 96))]
        assert sizes == [24, 12, 6, 6]
        dilations = [block.conv2.dilation[0] for block in backbone.layer4]
        assert dilations == [1, 2, 2], "the first block of a stage that is not strided keeps the dilation before it"


def test_without_an_ema_the_teacher_of_fixmatch_is_the_student(toy_split: Split) -> None:
    method = MODELS.build(dict(built(toy_split, "fixmatch/voc").method, segmentor=segmentor()))
    method.begin_training(100)
    for iteration in (0, 50):
        with torch.no_grad():
            for value in method.student.parameters():
                value.add_(torch.randn_like(value))
        method.begin_iteration(iteration)
        method.after_iteration()
        pairs = zip(method.student.state_dict().values(), method.teacher.network.state_dict().values(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
