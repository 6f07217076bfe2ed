"""U2PL: Eqs. (3) to (8) against a slow reference, what each loss moves, warm start, switches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmseg.models.decode_heads import DepthwiseSeparableASPPHead

from sslseg.config.assignments import parse_assignment
from sslseg.config.build import TrainOptions, build_config
from sslseg.config.lengths import batch_counts
from sslseg.config.upgrade import rename_settings
from sslseg.engine.build import optim_wrapper
from sslseg.errors import UserError
from sslseg.functional.schedule import Epochs, duration
from sslseg.methods.u2pl import U2PL
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
    mix_prob=1.0,
    unlabeled_weight=1.0,
    rampup=0.0,
    consistency="hard",
    alpha=0.4,
    dynamic_alpha=True,
    warmup=0.1,
    decay=0.9,
    teacher_warmup="average",
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


@pytest.mark.parametrize("consistency", ["hard", "ce"])
def test_the_partition_and_the_unsupervised_loss_equal_the_paper_s_sums(consistency: str) -> None:
    method = made(contrast_weight=0.0, consistency=consistency)
    given = batch()
    labeled, weak, strong = given.values()
    losses = method.loss(given)
    soft = probabilities(method.teacher.network, weak["inputs"])
    targets = F.one_hot(soft.argmax(1), CLASSES).movedim(3, 1) if consistency == "hard" else soft
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
                    total -= sum((targets[n, c, y, x] * own[n, c, y, x].log()).item() for c in range(CLASSES))
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
    features: list[Any] = []
    network.decode_head.sep_bottleneck.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    logits = network.decode_head(network.extract_feat(images)).detach()
    small = logits.softmax(1)
    entropy = -(probabilities(network, strong["inputs"]).log() * probabilities(network, strong["inputs"])).sum(1)
    inside = entropy[strong["valid"]].detach().numpy()
    limit = np.quantile(inside, 0.5)
    pseudo = probabilities(network, weak["inputs"]).argmax(1)
    expected_keys = method.key_projection.network(features[0])
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


def under(method: Any, *places: str) -> set[str]:
    names = {name for name, _ in method.named_parameters()}
    found = [{name for name in names if name.startswith(place)} for place in places]
    assert all(found)
    return set().union(*found)


@pytest.mark.parametrize("loss", ["infonce", "bce"])
def test_the_contrast_moves_encoder_and_projection_but_no_layer_of_the_segmentation_head(loss: str) -> None:
    """Sec. 4.1: f and g lie side by side on the output of ASPP."""
    method = made(contrast=CONTRAST | dict(loss=loss), warmup=0.0)
    given = batch()
    student, projection = under(method, "student."), under(method, "projection.")
    segmentation_head = under(method, "student.decode_head.sep_bottleneck", "student.decode_head.conv_seg")
    assert gradients(method, given, "loss_contrast") == student - segmentation_head | projection
    assert (
        under(method, "student.decode_head.aspp_modules", "student.decode_head.bottleneck")
        <= student - segmentation_head
    )
    assert not any("representation head" in message for message in method.messages)
    assert gradients(method, given, "loss_unlabeled") == student
    assert moved(method, given) >= student | projection
    assert method.eval_model is method.teacher.network
    assert not any(name.startswith("projection") for name, _ in method.eval_model.named_parameters())


def test_a_head_without_blocks_of_its_own_gives_what_enters_its_classifier() -> None:
    method = made(model="mitrans_r18s", warmup=0.0)
    assert sum("representation head" in message and "MITransHead" in message for message in method.messages) == 1
    expected = under(method, "student.", "projection.") - under(method, "student.decode_head.conv_seg")
    assert gradients(method, batch(), "loss_contrast") == expected


def test_a_head_of_one_s_own_names_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DepthwiseSeparableASPPHead, "classifier_blocks", "sep_bottleneck.1", raising=False)
    method = made(warmup=0.0)
    segmentation_head = under(method, "student.decode_head.sep_bottleneck.1", "student.decode_head.conv_seg")
    expected = under(method, "student.", "projection.") - segmentation_head
    assert gradients(method, batch(), "loss_contrast") == expected


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


@pytest.mark.parametrize("teacher_warmup", ["average", "copy"])
def test_the_teacher_is_the_average_from_the_first_iteration_or_a_copy_until_the_warm_start_ends(
    teacher_warmup: str,
) -> None:
    """Sec. 3.1, with a slow reference; the warm start lasts 10 iterations."""
    method = made(teacher_warmup=teacher_warmup)
    given = batch()
    optimizer = torch.optim.SGD([value for value in method.parameters() if value.requires_grad], lr=0.05)
    watched = {
        "teacher.network.decode_head.conv_seg.weight": "student.decode_head.conv_seg.weight",
        "teacher.network.backbone.stem.1.running_mean": "student.backbone.stem.1.running_mean",
        "key_projection.network.2.weight": "projection.2.weight",
    }
    expected = {name: method.state_dict()[name].clone() for name in watched}
    for t in range(14):
        method.begin_iteration(t)
        optimizer.zero_grad()
        total(method.loss(given)).backward()
        optimizer.step()
        with torch.no_grad():
            method.projection[2].weight.mul_(0.9)  # as weight decay, also during the warm start
        method.after_iteration()
        state = method.state_dict()
        decay = 0.0 if teacher_warmup == "copy" and t < 10 else min(1 - 1 / (t + 1), 0.9)
        for name, original in watched.items():
            expected[name] = decay * expected[name] + (1 - decay) * state[original]
            torch.testing.assert_close(state[name], expected[name])
            assert torch.equal(state[name], state[original]) == (t == 0 or (teacher_warmup == "copy" and t < 10))
    assert method.eval_model is method.teacher.network


@pytest.mark.parametrize("teacher_warmup", ["average", "copy"])
def test_warm_start_learns_from_labels_alone(teacher_warmup: str) -> None:
    method = made(teacher_warmup=teacher_warmup)
    method.begin_iteration(9)
    given = batch()
    losses = method.loss(given)
    assert "loss_unlabeled" not in losses
    assert losses["loss_contrast"] == 0
    student = {name for name, _ in method.named_parameters() if name.startswith("student.")}
    changed = {name for name in moved(method, given) if name in dict(method.named_parameters())}
    assert {name for name in changed if not name.startswith("teacher.")} == student
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


@pytest.mark.parametrize(
    ("iterations", "per_epoch"), [(37200, 186), (73, 12), (100, 30), (1000, 3), (99, 1), (5, 7), (29 * 49, 49)]
)
def test_an_epoch_begins_after_exactly_so_many_iterations(iterations: int, per_epoch: int) -> None:
    """Eq. (7) by counting, also where the last epoch is cut short."""
    method = made(alpha=0.2, contrast_weight=0.0)
    method.begin_training(iterations, per_epoch)
    epoch, since = 0, 0
    for iteration in range(iterations):
        if since == per_epoch:
            epoch, since = epoch + 1, 0
        since += 1
        method.begin_iteration(iteration)
        expected = 0.2 * (1 - float(Fraction(epoch * per_epoch, iterations)))
        assert abs(method.current_alpha() - expected) < 1e-12, iteration


def test_eta_grows_after_the_warm_start() -> None:
    """exp(-5 (1 - t)^2), t from 0 at the end of the warm start to 1 after ``rampup``; L_c does not wait."""
    given = batch()
    plain, ramped = made(), made(rampup=0.4)
    for iteration, t in ((10, 0.0), (20, 0.25), (49, 0.975), (50, 1.0), (99, 1.0)):
        losses = []
        for method in (plain, ramped):
            method.contrast.bank.clear()
            method.begin_iteration(iteration)
            torch.manual_seed(3)
            losses.append(method.loss(given))
        factor = math.exp(-5 * (1 - t) ** 2)
        for name in ("loss_unlabeled", "unlabeled_weight"):
            torch.testing.assert_close(losses[1][name], factor * losses[0][name])
        torch.testing.assert_close(losses[1]["loss_contrast"], losses[0]["loss_contrast"])


def test_all_images_of_an_iteration_are_mixed_or_none() -> None:
    """The official implementation does so with a probability of 0.5; adaptive CutMix has none."""
    view = other_views()[1]
    targets = torch.randn(3, CLASSES, *SIZE).softmax(1)
    for prob in (0.0, 0.3, 1.0):
        method = made(mix="cutmix", mix_prob=prob, contrast_weight=0.0)
        mixed = 0
        for _ in range(200):
            images, moved_targets, valid = method.mix_images(view, targets)
            changed = [bool((images[n] != view["inputs"][n]).any()) for n in range(3)]
            assert len(set(changed)) == 1
            assert changed[0] or (torch.equal(moved_targets, targets) and torch.equal(valid, view["valid"]))
            assert torch.equal((images != view["inputs"]).any(1), (moved_targets != targets).any(1))
            mixed += changed[0]
        assert mixed / 200 == pytest.approx(prob, abs=0.1 if 0 < prob < 1 else 0.0)
    assert complete(U2PL, {})["mix_prob"] == 0.5
    adaptive = made(mix="ael", mix_prob=0.0, contrast_weight=0.0)
    assert not torch.equal(adaptive.mix_images(view, targets)[0], view["inputs"])


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
    assert (method.rampup, method.consistency, method.teacher_warmup) == (0.0, "hard", "average")
    assert method.mix_prob == 0.5  # the official implementation's
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
    for baseline in ("supervised", "mean-teacher", "cutmix", "gct", "ael"):
        other = build_config(split, TrainOptions(config=f"{baseline}/{family}_u2pl", pretrained="none"))
        for key in ("model", "schedule", "optimizer", "paramwise", "data", "evaluation"):
            assert other[key] == config[key]


def names_of(model: torch.nn.Module, parameters: list[torch.nn.Parameter]) -> list[str]:
    wanted = {id(parameter) for parameter in parameters}
    return [name for name, parameter in model.named_parameters() if id(parameter) in wanted]


def test_a_fraction_that_is_set_overrules_epochs(toy_split: Split) -> None:
    """The paper's configs give the warm start in epochs."""
    options: dict[str, Any] = dict(config="u2pl/voc", pretrained="none")
    assert duration(build_config(toy_split, TrainOptions(**options)).method.warmup, name="warmup") == Epochs(1)
    options |= dict(iterations=100, assignments={"method.warmup": 0.3})
    assert build_config(toy_split, TrainOptions(**options)).method.warmup == 0.3


def observed(split: Split, *switches: str) -> SimpleNamespace:
    """Train two iterations with the random numbers of all others, and return what its losses were made of."""
    common = ("method.warmup=0.1", "method.rampup=0", "method.threshold=0.2", "method.unlabeled_weight=1")
    assignments = dict(map(parse_assignment, (*common, *switches)))
    config = build_config(
        split, TrainOptions(config="u2pl/default", iterations=100, pretrained="none", assignments=assignments)
    )
    method = build("U2PL", **{key: value for key, value in config.method.items() if key != "type"})
    method.load_state_dict(build("U2PL", **SETTINGS | dict(contrast_weight=0.0)).state_dict(), strict=False)
    method.begin_training(100, 10)
    method.begin_iteration(20)
    seen = SimpleNamespace(method=method)
    if method.contrast_weight:
        forward, term = method.contrast.forward, method.contrast.loss

        def noted(*arguments: torch.Tensor) -> torch.Tensor:
            seen.anchors, seen.negatives = arguments[2:]
            return forward(*arguments)

        def noted_term(*arguments: Any) -> torch.Tensor:
            seen.term_of = arguments
            seen.terms = term(*arguments)
            return seen.terms

        method.contrast.forward, method.contrast.loss = noted, noted_term
    torch.manual_seed(3)
    given = batch()
    for _ in range(2):  # the second one finds a filled bank
        torch.manual_seed(4)
        seen.losses = method.loss(given)
    if method.contrast_weight:
        pixels = len(seen.negatives) * 2 // 5  # two of five images are labeled
        seen.labeled, seen.unlabeled = seen.negatives[:pixels], seen.negatives[pixels:]
    return seen


@pytest.fixture
def plain(toy_split: Split) -> SimpleNamespace:
    return observed(toy_split)


def used(negatives: torch.Tensor) -> torch.Tensor:
    return negatives.any(dim=1)


def slow_term(seen: SimpleNamespace) -> torch.Tensor:
    """Return Eq. (A1) of what was given to the loss."""
    anchors, positives, negatives, tau = seen.term_of
    positive = ((anchors * positives[:, None]).sum(-1) / tau).exp()[..., None]
    negative = ((anchors[:, :, None] * negatives).sum(-1) / tau).exp()
    return -(positive / (positive + negative)).log().mean(-1)


Check = Callable[[SimpleNamespace, SimpleNamespace], bool]
OF_THE_CONTRAST: dict[str, Check] = {  # what a switch changes; L_s and L_u stay
    "method.reliability=reliable": lambda plain, seen: (
        not (used(plain.unlabeled) & used(seen.unlabeled)).any()
        and 0.7 < used(seen.unlabeled).sum() / used(plain.unlabeled).sum() < 1.4
        and torch.equal(plain.labeled, seen.labeled)
    ),
    "method.reliability=all": lambda plain, seen: (
        bool((plain.unlabeled <= seen.unlabeled).all())
        and used(seen.unlabeled).sum() > 4 * used(plain.unlabeled).sum() > 0
        and torch.equal(plain.labeled, seen.labeled)
    ),
    "method.ranks=(1,3)": lambda plain, seen: (
        torch.equal(seen.unlabeled.sum(1), 2 * used(plain.unlabeled))
        and seen.labeled.sum(1).amax() == 1
        and not (plain.unlabeled & seen.unlabeled).any()  # the lowest of four ranks only, instead of two in the middle
    ),
    "method.ranks=None": lambda plain, seen: (
        torch.equal(seen.unlabeled.sum(1), CLASSES * used(plain.unlabeled))
        and seen.labeled.sum(1).amax() == CLASSES - 1
    ),
    "method.contrast_weight=0": lambda plain, seen: (
        "loss_contrast" not in seen.losses
        and plain.losses["loss_contrast"] > 0
        and not under_any(seen.method, "projection", "key_projection")
    ),
    "method.contrast.use_memory_bank=False": lambda plain, seen: (
        torch.equal(seen.method.contrast.bank.counts, seen.negatives.sum(0))
        and torch.equal(plain.method.contrast.bank.counts, 2 * plain.negatives.sum(0))
    ),
    "method.contrast.loss=bce": lambda plain, seen: (
        torch.allclose(seen.terms, slow_term(seen)) and not torch.allclose(plain.terms, slow_term(plain))
    ),
    "method.contrast.temperature=0.1": lambda plain, seen: (plain.term_of[3], seen.term_of[3]) == (0.5, 0.1),
}
OF_THE_PARTITION = {  # switch -> proportion of unreliable pixels after 20 of 100 iterations, which are 10 epochs
    "method.dynamic_alpha=False": 0.2,
    "method.alpha=0.4": 0.32,
}


def under_any(method: Any, *places: str) -> bool:
    return any(name.startswith(places) for name in method.state_dict())


@pytest.mark.parametrize("switch", OF_THE_CONTRAST)
def test_rows_of_tables_4_to_6_and_of_the_appendix_change_what_they_name(
    toy_split: Split, plain: SimpleNamespace, switch: str
) -> None:
    """Tables 4, 5, 6, A2, A3, A4, A6 and A7; all else is equal, random numbers too."""
    seen = observed(toy_split, switch)
    assert OF_THE_CONTRAST[switch](plain, seen)
    for name in ("decode.loss_ce", "loss_unlabeled"):
        assert torch.equal(plain.losses[name], seen.losses[name])
    if "loss_contrast" in seen.losses:
        assert plain.losses["loss_contrast"] != seen.losses["loss_contrast"]
        assert torch.equal(plain.anchors, seen.anchors)


@pytest.mark.parametrize("switch", OF_THE_PARTITION)
def test_rows_of_tables_6_7_and_a8_change_the_proportion_of_unreliable_pixels(
    toy_split: Split, plain: SimpleNamespace, switch: str
) -> None:
    seen = observed(toy_split, switch)
    assert torch.equal(plain.losses["decode.loss_ce"], seen.losses["decode.loss_ce"])
    valid = 1 - 6 / SIZE[0]
    for one, alpha in ((plain, 0.16), (seen, OF_THE_PARTITION[switch])):
        assert one.losses["alpha"].item() == pytest.approx(alpha)
        assert one.losses["unlabeled_weight"].item() == pytest.approx(1 / (valid * (1 - alpha)), rel=1e-2)
    assert used(seen.unlabeled).sum() > used(plain.unlabeled).sum()


def test_the_row_with_ael_uses_all_its_parts(toy_split: Split, plain: SimpleNamespace) -> None:
    """Table 3; their values: ``test_ael``."""
    assert plain.method.equalizer is None
    equalizer = observed(toy_split, "method.mix=ael").method.equalizer
    assert equalizer.cutmix
    assert equalizer.copy_paste
    assert equalizer.sampling
    assert equalizer.reweighting


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(mix="blend"), "mix 'blend'"),
        (dict(reliability="some"), "reliability 'some'"),
        (dict(consistency="mse"), "consistency 'mse'"),
        (dict(teacher_warmup="off"), "teacher_warmup 'off'"),
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


def test_checkpoints_of_version_0_1_still_predict() -> None:
    """Their representation head reads what enters the classifier, and their confidence bank has no number of observations."""
    method = made(mix="ael")
    state = method.state_dict()
    for name in ("projection", "key_projection.network"):
        state[f"{name}.0.conv.weight"] = state[f"{name}.0.conv.weight"][:, :64]
    del state["equalizer.observations"]
    other = build("U2PL", seed=1, **SETTINGS | dict(mix="ael"))
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert (missing, unexpected) == ([], [])
    for name, value in other.eval_model.state_dict().items():
        assert torch.equal(value, method.eval_model.state_dict()[name])


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
