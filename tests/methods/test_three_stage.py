"""Stages 2 and 3: Eqs. (1) to (5) against slow references, what each loss moves, and where the network is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict

from sslseg.errors import UserError
from sslseg.methods.three_stage.second_branch import SecondBranch
from sslseg.registry import MODELS
from tests.methods.conftest import CLASSES, IGNORE, build, labeled_view, moved, other_views, segmentor, total

STAGE = dict(pseudo_weight=0.75, decays=[(0.0, 0.9)])


def batch(**more: Any) -> dict[str, dict]:
    weak, strong = other_views(pseudo=True, **more)
    return dict(labeled_weak=labeled_view(pseudo=True), train_weak=weak, train_strong=strong)


def full(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, (40, 48), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("geometry", [False, True])
@pytest.mark.parametrize("stage", [2, 3])
def test_losses_equal_the_paper_s_sums(stage: int, geometry: bool) -> None:
    method = build("ThreeStage", **STAGE | dict(stage=stage))
    given = batch(geometry=geometry)
    labeled, weak, strong = given.values()
    losses = method.loss(given)
    images = torch.cat((labeled["inputs"], strong["inputs"]))  # sub-batch 2, where A is the identity, and A x of 1
    features = method.student.extract_feat(images)
    logits, second = full(method.student.decode_head(features)), full(method.second(features))
    network = method.teacher.network
    teacher = full(network.decode_head(network.extract_feat(torch.cat((labeled["inputs"], weak["inputs"])))))
    targets = teacher.softmax(1)
    seg, con, pl = [], [], []
    for n in range(5):
        for y in range(40):
            for x in range(48):
                source = x + 3 if geometry and n >= 2 else x
                if n < 2:
                    truth = int(labeled["labels"][n, y, x])
                    counts = truth != IGNORE
                    if counts:
                        seg.append(-logits[n, :, y, x].log_softmax(0)[truth])  # Eq. (2)
                else:
                    counts = bool(strong["valid"][n - 2, y, x])
                if counts:  # Eq. (1)
                    con.append(-(targets[n, :, y, source] * logits[n, :, y, x].log_softmax(0)).sum())
                stored = int((labeled if n < 2 else strong)["pseudo_masks"][n if n < 2 else n - 2, y, x])
                if stored != IGNORE:  # Eq. (3)
                    pl.append(-second[n, :, y, x].log_softmax(0)[stored])
    # mmseg divides the sum of the labeled pixels by the number of all.
    torch.testing.assert_close(losses["decode.loss_ce"], torch.stack(seg).sum() / labeled["labels"].numel())
    torch.testing.assert_close(losses["loss_consistency"], 0.25 * torch.stack(con).mean())
    torch.testing.assert_close(losses["loss_pseudo"], 0.75 * torch.stack(pl).mean())
    assert {name for name in losses if "loss" in name} == {"decode.loss_ce", "loss_consistency", "loss_pseudo"}


def gradients(method: Any, given: dict, name: str) -> set[str]:
    """Return which parameters one of the losses alone would move."""
    method.zero_grad(set_to_none=True)
    method.loss(given)[name].backward()
    return {key for key, value in method.named_parameters() if value.grad is not None and value.grad.any()}


@pytest.mark.parametrize("stage", [2, 3])
def test_pseudo_masks_move_their_branch_and_what_is_shared(stage: int) -> None:
    method = build("ThreeStage", **STAGE | dict(stage=stage))
    given = batch()
    by_pseudo, by_truth = (gradients(method, given, name) for name in ("loss_pseudo", "decode.loss_ce"))
    own = {name for name, _ in method.named_parameters() if name.startswith("second.")}
    shared = {name for name, _ in method.named_parameters() if name.startswith("student.backbone.")}
    if stage == 2:  # g-hat has a last stage of its own
        shared = {name for name in shared if ".layer4." not in name}
        assert any(name.startswith("second.stage.") for name in own)
    assert by_pseudo == own | shared
    assert not any(name.startswith("student.decode_head.") for name in by_pseudo)
    assert by_truth == {name for name, _ in method.named_parameters() if name.startswith("student.")}


def test_an_iteration_moves_everything_and_the_teacher_only_follows() -> None:
    method = build("ThreeStage", **STAGE)
    given = batch()
    total(method.loss(given)).backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    names = moved(method, given, iterations=2)
    assert {name for name, _ in method.named_parameters()} <= names
    assert method.eval_model is method.student


@pytest.mark.parametrize(
    ("switch", "missing", "modules"),
    [
        (dict(consistency_weight=0.0), "loss_consistency", {"student", "second"}),
        (dict(pseudo_weight=0.0), "loss_pseudo", {"student", "teacher"}),
    ],
)
def test_switched_off_parts_leave_no_trace(switch: dict, missing: str, modules: set[str]) -> None:
    method = build("ThreeStage", **STAGE | switch)
    assert missing not in method.loss(batch())
    assert {name.split(".")[0] for name in method.state_dict()} - {"data_preprocessor"} == modules


def test_decay_follows_its_milestones_and_without_any_the_teacher_is_a_copy() -> None:
    method = build("ThreeStage", **STAGE | dict(decays=[(0.0, 0.5), (0.5, 0.8)]))
    copying = build("ThreeStage", **STAGE | dict(decays=[]))
    for iteration, decay in ((0, 0.0), (1, 0.5), (40, 0.5), (50, 0.8), (99, 0.8)):
        for one, expected in ((method, decay), (copying, 0.0)):
            weight = one.student.decode_head.conv_seg.weight
            before = one.teacher.network.decode_head.conv_seg.weight.clone()
            with torch.no_grad():
                weight.add_(1.0)
            one.begin_iteration(iteration)
            one.after_iteration()
            torch.testing.assert_close(
                one.teacher.network.decode_head.conv_seg.weight, expected * before + (1 - expected) * weight
            )


def test_branch_can_be_chosen_and_wrong_ones_are_refused() -> None:
    assert build("ThreeStage", **STAGE | dict(stage=3, branch="g-hat")).second.stage is not None
    assert build("ThreeStage", **STAGE | dict(branch="g-tilde")).second.stage is None
    assert build("ThreeStage", **STAGE | dict(stage=4)).second.stage is None
    with pytest.raises(UserError, match="g-bar"):
        build("ThreeStage", **STAGE | dict(branch="g-bar"))
    with pytest.raises(UserError, match="stage 1"):
        build("ThreeStage", **STAGE | dict(stage=1))


def test_labeled_images_without_a_stored_mask_teach_the_branch_nothing() -> None:
    method = build("ThreeStage", **STAGE)
    given = batch()
    expected = method.loss(given)["loss_pseudo"]
    for view in ("labeled_weak", "train_strong"):
        given[view]["pseudo_masks"] = torch.full_like(given[view]["pseudo_masks"], IGNORE)
    nothing = method.loss(given)["loss_pseudo"]
    assert expected > 0
    assert nothing == 0


def small(backbone: dict, **head: Any) -> ConfigDict:
    config = segmentor()
    config.backbone = ConfigDict(backbone)
    config.decode_head = ConfigDict(
        dict(
            type="SegformerHead",
            in_channels=[16, 32, 64, 128],
            in_index=[0, 1, 2, 3],
            channels=32,
            num_classes=CLASSES,
            dropout_ratio=0.0,
            loss_decode=dict(type="CrossEntropyLoss"),
            ignore_index=IGNORE,
        )
        | head
    )
    return config


MIT = dict(
    type="MixVisionTransformer",
    embed_dims=16,
    num_layers=[1, 1, 1, 2],
    num_heads=[1, 2, 4, 8],
    out_indices=(0, 1, 2, 3),
)
SWIN = dict(type="SwinTransformer", embed_dims=16, depths=(1, 1, 1, 2), num_heads=(1, 2, 4, 8), window_size=3)
RESNEXT = dict(type="ResNet", depth=50, base_channels=4, stem_channels=8, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))


@pytest.mark.parametrize("backbone", [MIT, SWIN, RESNEXT], ids=lambda config: config["type"])
def test_every_family_of_backbones_can_be_cut_at_half_the_width(backbone: dict) -> None:
    config = small(backbone)
    network = MODELS.build(config)
    branch = SecondBranch(network, config, own_stage=True)
    branch.init_weights()
    features = network.extract_feat(torch.randn(2, 3, 64, 96))
    last = branch.stage(features[-2])
    assert last.shape == (2, features[-1].shape[1] // 2, *features[-1].shape[2:])
    assert branch(features).shape == network.decode_head(features).shape
    theirs = sum(p.numel() for p in last_stage_of(network).parameters())
    own = sum(p.numel() for p in branch.stage.parameters())
    assert 0.15 < own / theirs < 0.75, "half the channels, about a quarter to a half of the weights"


def last_stage_of(network: Any) -> torch.nn.Module:
    backbone = network.backbone
    if hasattr(backbone, "layer4"):
        return backbone.layer4
    return (backbone.layers if hasattr(backbone, "layers") else backbone.stages)[-1]


def test_deeplabv2_on_a_resnet_is_cut_as_in_table_vii() -> None:
    config = segmentor("deeplabv2_r101")
    config.pretrained = None
    network = MODELS.build(config)
    hat, tilde = (SecondBranch(network, config, own_stage=own) for own in (True, False))
    assert [(block.conv1.out_channels, block.conv3.out_channels) for block in hat.stage] == [(256, 1024)] * 3
    assert hat.stage[0].conv1.in_channels == 1024
    assert [(conv.in_channels, conv.out_channels) for conv in hat.head.conv_seg] == [(1024, CLASSES)] * 4
    assert tilde.stage is None
    assert [conv.in_channels for conv in tilde.head.conv_seg] == [2048] * 4
    assert [block.conv2.dilation for block in hat.stage] == [block.conv2.dilation for block in network.backbone.layer4]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(backbone=dict(type="MobileNetV2", out_indices=(1, 2, 4, 6))), "lack the stage before the last"),
        (dict(backbone=dict(type="MobileNetV2", out_indices=(1, 2, 5, 6))), "only ResNet"),
        (dict(decode_head=dict(in_index=[0, 1, 2, 2])), "reads feature 2"),
        (dict(neck=dict(type="FPN", in_channels=[16, 32, 64, 128], out_channels=16, num_outs=4)), "a neck"),
    ],
)
def test_a_backbone_that_cannot_be_cut_is_refused(change: dict, reason: str) -> None:
    config = small(MIT)
    for key, value in change.items():
        config[key] = ConfigDict(config.decode_head | value) if key == "decode_head" else ConfigDict(value)
    with pytest.raises(UserError, match=reason) as caught:
        SecondBranch(MODELS.build(config), config, own_stage=True)
    assert "cannot be cut" in str(caught.value)
    assert "--set method.branch=g-tilde" in str(caught.value)
