"""Stages 2 and 3: Eqs. (1) to (5) against slow references, what each loss moves, and where the network is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper

from sslseg.config.files import load_named
from sslseg.engine.build import optim_wrapper
from sslseg.errors import UserError
from sslseg.methods.three_stage.second_branch import SecondBranch
from sslseg.registry import MODELS
from tests.conftest import Sslseg
from tests.methods.conftest import CLASSES, IGNORE, build, labeled_view, moved, other_views, segmentor, total

NORMS = (torch.nn.BatchNorm2d, torch.nn.LayerNorm)
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
    torch.testing.assert_close(losses["decode.loss_ce"], torch.stack(seg).mean())
    torch.testing.assert_close(losses["loss_consistency"], 0.25 * torch.stack(con).mean())
    torch.testing.assert_close(losses["loss_pseudo"], 0.75 * torch.stack(pl).mean())
    assert {name for name in losses if "loss" in name} == {"decode.loss_ce", "loss_consistency", "loss_pseudo"}


def gradients(method: Any, given: dict, name: str) -> set[str]:
    """Return which parameters one of the losses alone would move."""
    method.zero_grad(set_to_none=True)
    method.loss(given)[name].backward()
    return {key for key, value in method.named_parameters() if value.grad is not None and value.grad.any()}


LAST_STAGES = {"deeplabv3plus_r18s": [".layer4."], "deeplabv3plus_lite0": [f".blocks.{n}." for n in range(11, 16)]}


@pytest.mark.parametrize("model", LAST_STAGES)
@pytest.mark.parametrize("stage", [2, 3])
def test_pseudo_masks_move_their_branch_and_what_is_shared(stage: int, model: str) -> None:
    method = build("ThreeStage", model=model, **STAGE | dict(stage=stage))
    given = batch()
    by_pseudo, by_truth = (gradients(method, given, name) for name in ("loss_pseudo", "decode.loss_ce"))
    own = {name for name, _ in method.named_parameters() if name.startswith("second.")}
    shared = {name for name, _ in method.named_parameters() if name.startswith("student.backbone.")}
    if stage == 2:  # g-hat has a last stage of its own
        last = {name for name in shared if any(part in name for part in LAST_STAGES[model])}
        assert last
        shared -= last
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


def small(backbone: dict, outputs: int = 4) -> ConfigDict:
    config = segmentor()
    config.backbone = ConfigDict(backbone)
    widths = [24, 40, 112, 320] if backbone["type"] == "EfficientNetLite" else [16, 32, 64, 128]
    config.decode_head = ConfigDict(
        dict(
            type="SegformerHead",
            in_channels=widths[:outputs],
            in_index=list(range(outputs)),
            channels=32,
            num_classes=CLASSES,
            dropout_ratio=0.0,
            loss_decode=dict(type="CrossEntropyLoss"),
            ignore_index=IGNORE,
        )
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
RESNET = dict(type="ResNet", depth=50, base_channels=4, stem_channels=8, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))

LITE = dict(type="EfficientNetLite")
FAMILIES = pytest.mark.parametrize("backbone", [MIT, SWIN, RESNET, LITE], ids=lambda config: config["type"])


@FAMILIES
@pytest.mark.parametrize("outputs", [4, 3])
def test_every_family_of_backbones_can_be_cut_at_half_the_width(backbone: dict, outputs: int) -> None:
    config = small(backbone | dict(out_indices=tuple(range(outputs))), outputs)
    network = MODELS.build(config)
    branch = SecondBranch(network, config, own_stage=True)
    branch.init_weights()
    features = network.extract_feat(torch.randn(2, 3, 64, 96))
    last = branch.stage(features[-2])
    assert last.shape == (2, features[-1].shape[1] // 2, *features[-1].shape[2:])
    assert branch(features).shape == network.decode_head(features).shape
    theirs = sum(p.numel() for p in last_stage_of(network, outputs).parameters())
    own = sum(p.numel() for p in branch.stage.parameters())
    assert 0.15 < own / theirs < 0.75, "half the channels, about a quarter to a half of the weights"


def last_stage_of(network: Any, outputs: int) -> torch.nn.Module:
    backbone = network.backbone
    if hasattr(backbone, "blocks"):
        return backbone.blocks[11:16] if outputs == 4 else backbone.blocks[5:11]
    if hasattr(backbone, "layer4"):
        return getattr(backbone, f"layer{outputs}")
    return (backbone.layers if hasattr(backbone, "layers") else backbone.stages)[outputs - 1]


def test_g_hat_reads_all_features_but_the_last_from_the_segmentor() -> None:
    config = segmentor("deeplabv3plus_lite0")
    config.backbone.bn_momentum = 0.03
    network = MODELS.build(config)
    branch = SecondBranch(network, config, own_stage=True)
    features = network.extract_feat(torch.randn(2, 3, 64, 96))
    seen: list[torch.Tensor] = []
    branch.head.register_forward_pre_hook(lambda head, inputs: seen.extend(inputs[0]))
    branch(features)
    assert all(own is theirs for own, theirs in zip(seen[:3], features[:3], strict=True))
    assert [feature.shape[1] for feature in seen] == [24, 40, 112, 160]
    blocks = list(branch.stage)
    assert [block.project.conv.out_channels for block in blocks] == [96, 96, 96, 96, 160]
    assert [block.expand.conv.in_channels for block in blocks] == [112, 96, 96, 96, 96]
    for own, theirs in zip(blocks, network.backbone.blocks[11:], strict=True):
        assert own.kind == theirs.kind
        assert own.depthwise.norm.momentum == theirs.depthwise.norm.momentum == 0.03


def frozen_norms(backbone: dict) -> dict:
    """Return the config of a backbone whose normalization layers are frozen as far as its kind allows it."""
    if backbone is LITE:
        return backbone | dict(norm_eval=True)
    if backbone is RESNET:
        return backbone | dict(norm_cfg=dict(type="BN", requires_grad=False), norm_eval=True)
    return backbone | dict(norm_cfg=dict(type="LN", requires_grad=False))


def three_stage(backbone: dict) -> Any:
    method = MODELS.build(dict(type="ThreeStage", segmentor=small(backbone)))
    method.init_weights()
    return method


@FAMILIES
def test_g_hat_s_normalization_learns_where_the_backbone_s_is_frozen(backbone: dict) -> None:
    method = three_stage(frozen_norms(backbone)).train()
    norms = [part for part in method.second.stage.modules() if isinstance(part, NORMS)]
    assert norms
    assert all(norm.training for norm in norms)
    assert all(parameter.requires_grad for norm in norms for parameter in norm.parameters())
    theirs = [part for part in method.student.backbone.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert not any(norm.training for norm in theirs)
    names = moved(method, batch())
    frozen = {name for name, _ in method.named_buffers() if name.startswith("student.backbone.")}
    assert not frozen & names
    assert {
        name for name, _ in method.named_buffers() if name.startswith("second.stage.") and "running_" in name
    } <= names


@FAMILIES
def test_g_hat_learns_at_the_head_s_rate(backbone: dict) -> None:
    """The recipes give a tenth to the pretrained backbone, by its name."""
    method = three_stage(backbone)
    config = load_named("three-stage/voc_1_8")
    config.amp = False
    groups = build_optim_wrapper(method, optim_wrapper(config)).optimizer.param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in method.named_parameters():
        if not name.startswith("teacher."):
            rate = 3e-6 if name.startswith("student.backbone.") else 3e-5
            assert rates[id(parameter)] == pytest.approx(rate), name


def test_g_hat_of_a_resnet_begins_as_a_backbone_without_pretraining() -> None:
    """mmseg: Kaiming et al.'s normal distribution, 2 / fan-out; torch's own would be 1 / 3 / fan-in."""
    stage = three_stage(RESNET).second.stage
    convolutions = [part for part in stage.modules() if isinstance(part, torch.nn.Conv2d)]
    assert len(convolutions) == 9
    for convolution in convolutions:
        outputs = convolution.out_channels * convolution.kernel_size[0] ** 2
        assert float(convolution.weight.detach().std()) == pytest.approx((2 / outputs) ** 0.5, rel=0.15)


def test_checkpoints_that_call_g_hat_s_transformer_a_backbone_are_read() -> None:
    stage = three_stage(MIT).second.stage
    old = {name.replace("transformer.", "backbone."): value + 1 for name, value in stage.state_dict().items()}
    stage.load_state_dict(old)
    assert all(torch.equal(value, old["backbone." + name]) for name, value in stage.transformer.state_dict().items())


@pytest.mark.slow
def test_three_stages_on_efficientnet_lite_and_the_scores_of_their_masks(workspace: Path, sslseg: Sslseg) -> None:
    short = (
        "--model",
        "deeplabv3plus_lite0",
        "--iterations",
        "2",
        "--batch-size",
        "2",
        "--crop",
        "64",
        "--workers",
        "0",
    )
    run = sslseg("train", "--method", "supervised", *short).path
    store = sslseg("pseudolabel", run, "--subset", "train", "--workers", "0").path
    for stage in (1, 2, 3):
        if stage > 1:
            done = json.loads(sslseg("refine", run, "--json").out)  # model and schedule are inherited
            run, store = Path(done["path"]), Path(done["store"])
            assert done["stage"] == stage
        record = json.loads((run / "run.json").read_text())
        assert record["iterations"] == 2
        assert record["pretrained"].startswith("package://efficientnet_lite0")
        scores = json.loads(sslseg("eval", store, "--subset", "unlabeled", "--json").out)
        assert scores["images"] == 12
        assert 0 <= scores["mIoU"] <= 100
        assert (store.parent / "train-eval-unlabeled.json").is_file()
    names = torch.load(run / "checkpoints" / "last.pth", weights_only=True)["state_dict"]
    assert not any(name.startswith("second.stage.") for name in names)
    before = torch.load("runs/stage2-toy-4/checkpoints/last.pth", weights_only=True)["state_dict"]
    assert any(name.startswith("second.stage.") for name in before)


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
        (dict(backbone=dict(type="MobileNetV2", out_indices=(1, 2, 5, 6))), "narrow_last_stage"),
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
