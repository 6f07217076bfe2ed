"""U2PL: Eqs. (3) to (8) against a slow reference, what each loss moves, warm start, switches."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper

from sslseg.config.assignments import parse_assignment
from sslseg.config.build import TrainOptions, build_config
from sslseg.config.lengths import batch_counts
from sslseg.config.upgrade import rename_settings
from sslseg.engine.build import optim_wrapper
from sslseg.errors import UserError
from sslseg.functional.schedule import Epochs, duration
from sslseg.methods.u2pl import U2PL
from sslseg.networks.logits import before_classifier
from sslseg.registry import MODELS
from sslseg.settings import complete
from sslseg.splits.split import Split
from tests.methods.conftest import CLASSES, IGNORE, SIZE, build, labeled_view, moved, other_views, segmentor, total

CONTRAST: dict[str, Any] = dict(
    dim=16,
    loss="infonce",
    anchors=5,
    negatives=7,
    temperature=0.5,
    queue_size=400,
    background_queue_size=500,
    use_memory_bank=True,
)
SETTINGS: dict[str, Any] = dict(
    mix="none",
    unlabeled_weight=1.0,
    alpha=0.4,
    dynamic_alpha=True,
    warmup=0.1,
    decay=0.9,
    contrast_weight=0.1,
    threshold=0.25,
    ranks=(2, 20),
    reliability="unreliable",
    contrast=CONTRAST,
    equalizer={},
)


def made(**more: Any) -> Any:
    method = build("U2PL", **SETTINGS | more)
    method.begin_training(100, iterations_per_epoch=10)
    method.begin_iteration(20)
    return method


def batch() -> dict[str, dict]:
    weak, strong = other_views()
    return dict(labeled_weak=labeled_view(), unlabeled_weak=weak, unlabeled_strong=strong)


def probabilities(network: Any, images: torch.Tensor) -> torch.Tensor:
    logits = network.decode_head(network.extract_feat(images))
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=False).softmax(1)


def test_the_partition_and_the_unsupervised_loss_equal_the_paper_s_sums() -> None:
    method = made(contrast_weight=0.0)
    given = batch()
    labeled, weak, strong = given.values()
    losses = method.loss(given)
    targets = probabilities(method.teacher.network, weak["inputs"]).argmax(1)
    mixed = probabilities(method.teacher.network, strong["inputs"])
    own = probabilities(method.student, torch.cat((labeled["inputs"], strong["inputs"])))[2:]
    entropy = -(mixed * mixed.log()).sum(1)  # Eq. (5)
    alpha = 0.4 * (1 - 2 / 10)  # Eq. (7), after 20 of 100 iterations, which are 10 epochs
    limit = np.quantile(entropy[strong["valid"]].detach().numpy(), 1 - alpha)
    total, kept, number = 0.0, 0, 0
    for n in range(3):
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                number += 1
                if strong["valid"][n, y, x] and entropy[n, y, x] < limit:  # Eq. (6)
                    total -= own[n, targets[n, y, x], y, x].log().item()
                    kept += 1
    weight = number / kept  # Eq. (8)
    assert losses["alpha"].item() == pytest.approx(alpha)
    assert losses["unlabeled_weight"].item() == pytest.approx(weight, rel=1e-3)
    assert losses["loss_unlabeled"].item() == pytest.approx(weight * total / kept, rel=1e-3)


@pytest.mark.parametrize("reliability", ["unreliable", "reliable", "all"])
@pytest.mark.parametrize("ranks", [(2, 20), None])
def test_anchors_and_negatives_come_from_where_the_paper_takes_them(
    monkeypatch: pytest.MonkeyPatch, reliability: str, ranks: tuple[int, int] | None
) -> None:
    """The entropy, labels and probabilities of the iteration, pixel by pixel, at the resolution of the features."""
    method = made(reliability=reliability, ranks=ranks, alpha=0.5, dynamic_alpha=False)
    given = batch()
    labeled, weak, strong = given.values()
    seen: list[Any] = []
    monkeypatch.setattr(method.contrast, "forward", lambda *arguments: seen.append(arguments) or arguments[0].sum())
    method.loss(given)
    vectors, keys, anchors, negative = seen[0]
    images = torch.cat((labeled["inputs"], strong["inputs"]))
    network = method.teacher.network
    with before_classifier(network.decode_head) as features:
        logits = network.decode_head(network.extract_feat(images)).detach()
    small = logits.softmax(1)
    entropy = -(probabilities(network, strong["inputs"]).log() * probabilities(network, strong["inputs"])).sum(1)
    inside = entropy[strong["valid"]].detach().numpy()
    limit = np.quantile(inside, 0.5)
    pseudo = probabilities(network, weak["inputs"]).argmax(1)
    expected_keys = F.normalize(method.key_projection.network(features[0]), dim=1)
    torch.testing.assert_close(keys, expected_keys.permute(0, 2, 3, 1).flatten(0, 2))
    assert vectors.shape == keys.shape
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    row, found = 0, 0
    height, width = small.shape[2:]
    for n in range(5):
        for y in range(height):
            for x in range(width):
                p = small[n, :, y, x].tolist()
                rank = [sorted(p, reverse=True).index(value) for value in p]
                at = (y * SIZE[0] // height, x * SIZE[1] // width)
                if n < 2:
                    label = int(labeled["labels"][n][at])
                    holds = label != IGNORE
                else:
                    label, valid = int(pseudo[n - 2][at]), bool(strong["valid"][n - 2][at])
                    value = float(entropy[n - 2][at])
                    holds = valid and value < limit
                    source = dict(unreliable=value > limit, reliable=value < limit, all=True)[reliability] and valid
                assert anchors[row] == (label if holds and p[label] > 0.25 else CLASSES)
                for c in range(CLASSES):
                    if n < 2:
                        expected = holds and label != c and (ranks is None or rank[c] < 2)
                    else:
                        expected = source and (ranks is None or rank[c] >= 2)
                    assert negative[row, c] == expected
                    found += bool(expected)
                row += 1
    assert found


def gradients(method: Any, given: dict, name: str) -> set[str]:
    method.zero_grad(set_to_none=True)
    method.loss(given)[name].backward()
    return {key for key, value in method.named_parameters() if value.grad is not None and value.grad.any()}


@pytest.mark.parametrize("loss", ["infonce", "bce"])
def test_the_contrast_moves_encoder_and_projection_only(loss: str) -> None:
    method = made(contrast=CONTRAST | dict(loss=loss), warmup=0.0)
    given = batch()
    names = {name for name, _ in method.named_parameters()}
    student = {name for name in names if name.startswith("student.")}
    classifier = {name for name in names if name.startswith("student.decode_head.conv_seg")}
    projection = {name for name in names if name.startswith("projection.")}
    assert classifier
    assert projection
    assert gradients(method, given, "loss_contrast") == student - classifier | projection
    assert gradients(method, given, "loss_unlabeled") == student
    assert moved(method, given) >= student | projection
    assert method.eval_model is method.teacher.network
    assert not any(name.startswith("projection") for name, _ in method.eval_model.named_parameters())


def test_the_contrast_is_weighted_by_lambda_c() -> None:
    given = batch()
    terms = []
    for weight in (0.1, 0.3):
        method = made(contrast_weight=weight)
        torch.manual_seed(2)
        terms.append(method.loss(given)["loss_contrast"])
    assert terms[0] > 0
    torch.testing.assert_close(terms[1], 3 * terms[0])


def test_the_ema_follows_the_projection_as_well() -> None:
    method = made()
    before = method.key_projection.network[2].weight.clone()
    with torch.no_grad():
        method.projection[2].weight.add_(1.0)
    method.after_iteration()
    torch.testing.assert_close(method.key_projection.network[2].weight, 0.9 * before + 0.1 * (before + 1.0))


def test_warm_start_learns_from_labels_alone_and_the_teacher_is_the_student() -> None:
    method = made()
    method.begin_iteration(9)
    given = batch()
    losses = method.loss(given)
    assert "loss_unlabeled" not in losses
    assert losses["loss_contrast"] == 0
    student = {name for name, _ in method.named_parameters() if name.startswith("student.")}
    changed = {name for name in moved(method, given) if name in dict(method.named_parameters())}
    assert {name for name in changed if not name.startswith("teacher.")} == student
    for name, value in method.student.state_dict().items():
        assert torch.equal(value, method.teacher.network.state_dict()[name])
    method.begin_iteration(10)
    assert "loss_unlabeled" in method.loss(given)


def test_alpha_falls_from_epoch_to_epoch_unless_it_is_constant() -> None:
    method = made(alpha=0.2)
    values = []
    for iteration in (0, 9, 10, 55, 99):
        method.begin_iteration(iteration)
        values.append(method.current_alpha())
    assert values == pytest.approx([0.2, 0.2, 0.18, 0.1, 0.02])
    constant = made(alpha=0.2, dynamic_alpha=False)
    constant.begin_iteration(99)
    assert constant.current_alpha() == 0.2


def test_without_a_bank_only_negatives_of_the_iteration_are_used() -> None:
    method = made()
    forgetful = made(contrast=CONTRAST | dict(use_memory_bank=False, queue_size=5000, background_queue_size=5000))
    given = batch()
    counts = []
    for _ in range(2):
        method.loss(given)
        forgetful.loss(given)
        counts.append((method.contrast.bank.counts.sum(), forgetful.contrast.bank.counts.sum()))
    assert counts[1][0] > counts[0][0]
    assert counts[1][1] == counts[0][1] > 0


@pytest.mark.parametrize("mix", ["cutmix", "cutout", "classmix"])
def test_images_are_mixed_with_their_labels(monkeypatch: pytest.MonkeyPatch, mix: str) -> None:
    method = made(mix=mix, contrast_weight=0.0, alpha=0.0)
    kept = torch.zeros(3, 1, *SIZE, dtype=torch.bool)
    kept[..., : SIZE[1] // 2] = True
    monkeypatch.setattr("sslseg.functional.mixing.rectangles", lambda *a, **k: kept)
    monkeypatch.setattr("sslseg.functional.mixing.class_masks", lambda *a, **k: kept)
    given = batch()
    images, valid = given["unlabeled_strong"]["inputs"], given["unlabeled_strong"]["valid"]
    other = torch.zeros_like(images) if mix == "cutout" else images.roll(-1, 0)
    plain = made(contrast_weight=0.0, alpha=0.0)
    targets = probabilities(method.teacher.network, given["unlabeled_weak"]["inputs"])
    valid = valid & kept[:, 0] if mix == "cutout" else valid
    own = probabilities(method.student, torch.cat((given["labeled_weak"]["inputs"], torch.where(kept, images, other))))
    classes = (targets if mix == "cutout" else torch.where(kept, targets, targets.roll(-1, 0))).argmax(1)
    losses = -own[2:].gather(1, classes[:, None])[:, 0].log()
    expected = losses[valid].mean() * valid.numel() / valid.sum()
    torch.testing.assert_close(method.loss(given)["loss_unlabeled"], expected, rtol=2e-3, atol=1e-4)
    assert plain.loss(given)["loss_unlabeled"] != expected


@pytest.mark.parametrize("family", ["voc", "cityscapes"])
def test_the_paper_s_settings_are_those_of_the_paper(toy_split: Split, family: str) -> None:
    """Wang et al., Sec. 4.1, Appendix A, Table A1."""
    voc = family != "cityscapes"
    split = replace(toy_split, unlabeled=toy_split.unlabeled * 40)  # long enough to have a warm start of its own
    config = build_config(split, TrainOptions(config=f"u2pl/{family}", pretrained="none"))
    schedule = config.schedule
    assert schedule.iterations_per_epoch == math.ceil(len(split.unlabeled) / 16)
    assert schedule.iterations == (80 if voc else 200) * schedule.iterations_per_epoch
    assert batch_counts(config, ("labeled", "unlabeled")) == dict(labeled=16, unlabeled=16)
    assert tuple(config.data.crop) == ((513, 513) if voc else (769, 769))
    assert (tuple(config.data.scale), config.data.flip) == ((0.5, 2.0), 0.5)
    optimizer = config.optimizer
    assert optimizer.type == "SGD"
    assert (optimizer.lr, optimizer.weight_decay) == ((1e-3, 1e-4) if voc else (0.01, 5e-4))
    assert (schedule.power, schedule.warmup) == (0.9, 0)
    assert config.model.backbone.depth == 101
    assert (config.model.auxiliary_head is None) == voc
    if not voc:
        assert config.model.auxiliary_head.loss_decode.loss_weight == 0.4
        assert config.model.decode_head.sampler == dict(type="OHEMPixelSampler", thresh=0.7, min_kept=50000)
    assert config.evaluation.mode == ("center-crop" if voc else "slide")
    method = config.method
    assert (method.unlabeled_weight, method.contrast_weight, method.alpha, method.decay) == (1.0, 0.1, 0.2, 0.99)
    assert (method.threshold, tuple(method.ranks), method.mix) == (0.3, (3, 20), "cutmix")
    contrast = method.contrast
    assert (contrast.anchors, contrast.negatives, contrast.temperature) == (50, 256, 0.5)
    assert (contrast.dim, contrast.queue_size, contrast.background_queue_size) == (256, 30000, 50000)
    assert method.equalizer.momentum == 0.999
    model = MODELS.build(dict(config.method, segmentor=segmentor()))
    model.begin_training(schedule.iterations, schedule.iterations_per_epoch)
    assert model.fraction(model.warmup) == pytest.approx(1 / 80 if voc else 20 / 200)
    model.begin_iteration(schedule.iterations - 1)
    assert model.current_alpha() == pytest.approx(0.2 / (80 if voc else 200))
    optimized = build_optim_wrapper(model, optim_wrapper(config)).optimizer
    rates = {name: group["lr"] for group in optimized.param_groups for name in names_of(model, group["params"])}
    assert rates["student.backbone.layer1.0.conv1.weight"] == pytest.approx(optimizer.lr)
    for name in ("student.decode_head.conv_seg.weight", "projection.2.weight"):
        assert rates[name] == pytest.approx(10 * optimizer.lr)
    for baseline in ("supervised", "mean-teacher", "cutmix"):
        other = build_config(split, TrainOptions(config=f"{baseline}/{family}_u2pl", pretrained="none"))
        for key in ("model", "schedule", "optimizer", "paramwise", "data", "evaluation"):
            assert other[key] == config[key]


def names_of(model: torch.nn.Module, parameters: list[torch.nn.Parameter]) -> list[str]:
    wanted = {id(parameter) for parameter in parameters}
    return [name for name, parameter in model.named_parameters() if id(parameter) in wanted]


SWITCHES = [
    "method.reliability=reliable",
    "method.reliability=all",
    "method.ranks=(1,3)",
    "method.ranks=None",
    "method.contrast_weight=0",
    "method.contrast.use_memory_bank=False",
    "method.dynamic_alpha=False",
    "method.alpha=0.4",
    "method.contrast.loss=bce",
    "method.contrast.temperature=0.1",
    "method.mix=ael",
]


def test_a_fraction_that_is_set_overrules_epochs(toy_split: Split) -> None:
    """The paper's configs give the warm start in epochs."""
    options: dict[str, Any] = dict(config="u2pl/voc", iterations=100, pretrained="none")
    assert duration(build_config(toy_split, TrainOptions(**options)).method.warmup, name="warmup") == Epochs(1)
    options["assignments"] = {"method.warmup": 0.3}
    assert build_config(toy_split, TrainOptions(**options)).method.warmup == 0.3


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_row_of_the_tables_has_a_switch_that_changes_the_loss(toy_split: Split, switch: str) -> None:
    """Tables 3 to 7 and A2 to A8; all else is equal, random numbers too."""
    totals = []
    for assignments in ({}, dict([parse_assignment(switch)])):
        options = TrainOptions(config="u2pl/default", iterations=100, pretrained="none", assignments=assignments)
        config = build_config(toy_split, options)
        settings = {key: value for key, value in config.method.items() if key != "type"}
        method = build("U2PL", **settings)
        method.begin_training(100, config.schedule.iterations_per_epoch)
        method.begin_iteration(60)
        torch.manual_seed(3)
        given = batch()
        method.loss(given)  # fills the bank
        torch.manual_seed(4)
        totals.append(total(method.loss(given)).item())
    assert totals[0] != totals[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(mix="blend"), "mix 'blend'"),
        (dict(reliability="some"), "reliability 'some'"),
        (dict(contrast=CONTRAST | dict(loss="l2")), "contrast.loss 'l2'"),
    ],
)
def test_unknown_choices_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**settings)


def test_settings_of_version_0_1_have_new_names() -> None:
    old = SETTINGS | dict(adjust=False, epochs=10.0, contrast=dict(remember=False, size=7, background=9))
    del old["dynamic_alpha"]
    rename_settings(old, U2PL.old_settings, where="method")
    completed = complete(U2PL, old)
    assert completed["dynamic_alpha"] is False
    contrast = completed["contrast"]
    assert (contrast["use_memory_bank"], contrast["queue_size"], contrast["background_queue_size"]) == (False, 7, 9)


@pytest.mark.parametrize("contrast_weight", [0.0, 0.1])
def test_bare_passes_run_every_network_and_no_loss(contrast_weight: float) -> None:
    method = made(contrast_weight=contrast_weight)
    seen: dict[str, int] = {}
    names = dict(student="student.backbone", teacher="teacher.network.backbone")
    if contrast_weight:
        names |= dict(projection="projection", key_projection="key_projection.network")
    for name, place in names.items():
        module = method.get_submodule(place)
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: len(inputs[0])}))
    outputs = method.bare_passes(batch())
    projections = dict(projection=5, key_projection=5) if contrast_weight else {}
    assert seen == dict(student=5, teacher=8) | projections
    assert all(output.requires_grad for output in outputs)
    assert len(outputs) == 1 + bool(contrast_weight) + method.student.with_auxiliary_head


def test_the_contrast_can_be_measured_alone() -> None:
    method = made()
    (gradient,) = method.bench_parts(batch())["contrast"]()
    assert gradient.shape[1] == method.contrast.dim
    assert gradient.any()
    assert method.contrast.bank.counts.all()
    assert made(contrast_weight=0.0).bench_parts(batch()) == {}
