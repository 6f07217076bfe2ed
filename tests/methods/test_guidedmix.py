"""GuidedMix-Net: Eqs. (2), (3) and (7) to (12) against slow references, what learns, and the pseudo-masks of a store."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslseg.artifacts.find import build_method, find_model
from sslseg.config.build import TrainOptions, build_config
from sslseg.config.files import load, load_named
from sslseg.data.reading import read_image
from sslseg.engine.iterations import IterationSeed
from sslseg.errors import Interrupted, UserError
from sslseg.methods.guidedmix import DecoupledPredictor, decoupling
from sslseg.plugins import config_paths
from sslseg.splits.split import Split
from sslseg.store import StoreReader, verify_store
from sslseg.train import train
from tests.conftest import OPTIONS, SHORT, Sslseg
from tests.methods.conftest import CLASSES, IGNORE, SIZE, build, labeled_view, moved, other_views, total

SETTINGS: dict[str, Any] = dict(
    unlabeled_weight=2.0, decoupling_weight=0.7, classifier_weight=0.3, warmup=0.1, rampup=0.4
)
METHOD = ("--method", "guidedmix", "--model", "mitrans_r18s")
LAMBDAS = {2: [0.15, 0.4], 3: [0.05, 0.3, 0.45]}


def made(**more: Any) -> Any:
    method = build("GuidedMix", model="mitrans_r18s", **SETTINGS | more)
    method.begin_iteration(30)
    return method


def batch(number: int = 3) -> dict[str, dict]:
    weak, _ = other_views(number)
    return dict(labeled_weak=labeled_view(), unlabeled_weak=weak)


@pytest.fixture
def fixed_lambdas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known lambdas, by the number of pairs, and known random partners."""
    monkeypatch.setattr(decoupling, "sample_lambdas", lambda n, **_: torch.tensor(LAMBDAS[n]).reshape(n, 1, 1, 1))
    monkeypatch.setattr(decoupling, "random_other", lambda n, **_: torch.arange(n).flip(0))
    monkeypatch.setattr(decoupling, "random_reference", lambda n, references, **_: torch.arange(n) % references)


def passed(method: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last encoder feature and the full-size logits of one pass."""
    features = method.student.extract_feat(images)
    logits = method.student.decode_head(features)
    return features[-1], F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)


def target_logits(method: Any, *batches: torch.Tensor) -> list[torch.Tensor]:
    """Return full-size logits as the targets' networks give them: in evaluation mode unless ``target`` says otherwise."""
    network = copy.deepcopy(method).train(method.target == "train")
    return [passed(network, images)[1] for images in batches]


def remaining(mixed: list[float], labeled: list[float], weight: float, renormalize: str) -> list[float]:
    values = [m - weight * p for m, p in zip(mixed, labeled, strict=True)]
    if renormalize != "raw":
        values = [max(value, 0.0) for value in values]
    return [value / max(sum(values), 1e-6) for value in values] if renormalize == "normalize" else values


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(target="train"),
        dict(decoupling="hard"),
        dict(labeled_decoupling="hard", target="train"),
        dict(decoupling="hard", renormalize="clamp"),
        dict(labeled_decoupling="hard", renormalize="raw"),
        dict(space="logits", renormalize="raw", pairs="random"),
        dict(space="logits", renormalize="clamp", decoupling="hard", labeled_decoupling="soft"),
        dict(distance="map"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("fixed_lambdas")
def test_losses_equal_the_paper_s_sums(settings: dict[str, Any]) -> None:
    method, given = made(**settings), batch()
    labeled, weak = given.values()
    losses = method.loss(given)
    after = copy.deepcopy(method)  # its first pass has updated the running statistics
    images, others, labels = labeled["inputs"], weak["inputs"], labeled["labels"]
    with torch.no_grad():
        encoded, logits = passed(method, torch.cat((images, others)))
        vectors = encoded.mean((2, 3)) if method.distance == "pooled" else encoded
        away = [[(vectors[2 + k] - vectors[i]).norm().item() for i in range(2)] for k in range(3)]  # Eq. (3)
        similar = method.pairs == "similar"
        partners = [min(range(2), key=row.__getitem__) for row in away] if similar else [0, 1, 0]
        mixtures = [
            weight * images[i] + (1 - weight) * other  # Eq. (2)
            for i, other, weight in zip(partners, others, LAMBDAS[3], strict=True)
        ]
        pairs = [LAMBDAS[2][n] * images[n] + (1 - LAMBDAS[2][n]) * images[1 - n] for n in range(2)]
        own, mixed, paired = target_logits(after, images, torch.stack(mixtures), torch.stack(pairs))
        own = logits[:2] if method.target == "train" else own
    if method.space == "probabilities":
        logits, own, mixed, paired = (value.softmax(1) for value in (logits, own, mixed, paired))
    unlabeled, number, between, labeled_pixels = 0.0, 0, 0.0, 0
    hard = method.decoupling == "hard"
    hard_pairs = (method.labeled_decoupling or method.decoupling) == "hard"
    # A difference that sums to 0 is never normalized.
    normalizes = {
        is_hard: "raw" if is_hard and method.renormalize == "normalize" else method.renormalize
        for is_hard in (True, False)
    }
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            for k in range(3):
                if weak["valid"][k, y, x]:
                    weight = 1.0 if hard else LAMBDAS[3][k]
                    target = remaining(
                        mixed[k, :, y, x].tolist(), own[partners[k], :, y, x].tolist(), weight, normalizes[hard]
                    )
                    unlabeled += sum((a - b) ** 2 for a, b in zip(target, logits[2 + k, :, y, x].tolist(), strict=True))
                    number += 1
            for n in range(2):
                if labels[1 - n, y, x] != IGNORE:
                    weight = 1.0 if hard_pairs else LAMBDAS[2][n]
                    target = remaining(
                        paired[n, :, y, x].tolist(), own[n, :, y, x].tolist(), weight, normalizes[hard_pairs]
                    )
                    between += sum((a - b) ** 2 for a, b in zip(target, own[1 - n, :, y, x].tolist(), strict=True))
                    labeled_pixels += 1
    omega = 2.0 * math.exp(-5 * (1 - (0.3 - 0.1) / 0.4) ** 2)
    assert losses["loss_unlabeled"].item() == pytest.approx(omega * unlabeled / number, rel=1e-3)  # Eqs. (9), (10)
    assert losses["loss_decoupling"].item() == pytest.approx(0.7 * between / labeled_pixels, rel=1e-3)  # Eq. (12)
    terms = []
    for n in range(2):
        class_logits = method.classifier.weight @ encoded[n].mean((1, 2)) + method.classifier.bias
        for c, logit in enumerate(class_logits.tolist()):
            holds = bool((labels[n] == c).any())
            terms.append(math.log1p(math.exp(-logit if holds else logit)))
    assert losses["loss_classifier"].item() == pytest.approx(0.3 * sum(terms) / len(terms), rel=1e-4)
    with torch.no_grad():
        labeled_logits = passed(method, torch.cat((images, others)))[1][:2]
    supervised = F.cross_entropy(labeled_logits, labels, ignore_index=IGNORE)
    torch.testing.assert_close(losses["decode.loss_ce"].detach(), supervised)


@pytest.mark.parametrize("settings", [{}, dict(renormalize="raw"), dict(space="logits", renormalize="raw")])
def test_with_lambda_0_the_decoupled_mask_is_the_direct_prediction(settings: dict[str, Any]) -> None:
    given = batch()
    for largest, equal in ((0.0, True), (0.5, False)):
        method = made(lambda_max=largest, **settings).eval()
        assert (method.loss(given)["loss_unlabeled"].item() < 1e-7) is equal


def watched(method: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Return into which predictions the gradient of a loss flows."""
    leaves: list[torch.Tensor] = []
    original = method.predictions

    def kept(logits: torch.Tensor) -> torch.Tensor:
        leaves.append(original(logits).detach().requires_grad_(logits.requires_grad))
        return leaves[-1]

    monkeypatch.setattr(method, "predictions", kept)
    method.loss(batch())[name].backward()
    names = ("own", "direct", "mixed", "paired")
    return {name: leaf.grad is not None and bool(leaf.grad.any()) for name, leaf in zip(names, leaves, strict=True)}


@pytest.mark.parametrize("space", ["probabilities", "logits"])
def test_gradients_stop_at_targets(monkeypatch: pytest.MonkeyPatch, space: str) -> None:
    settings = dict(space=space, renormalize="raw")
    for detach_targets in (True, False):
        flows = watched(made(**settings, detach_targets=detach_targets), "loss_unlabeled", monkeypatch)
        assert flows == dict(own=False, direct=True, mixed=False, paired=False)
    flows = watched(made(**settings), "loss_decoupling", monkeypatch)
    assert flows == dict(own=False, direct=False, mixed=False, paired=True)
    flows = watched(made(**settings, detach_targets=False), "loss_decoupling", monkeypatch)
    assert flows == dict(own=True, direct=False, mixed=False, paired=True)


def test_the_mixture_for_a_target_builds_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    method, seen = made(), []
    original = method.student.extract_feat
    monkeypatch.setattr(
        method.student,
        "extract_feat",
        lambda images: seen.append((len(images), torch.is_grad_enabled())) or original(images),
    )
    method.loss(batch())
    assert seen == [(5, True), (2, False), (3, False), (2, True)]  # x_l with x_u, M_l, M_mix, pairs of L_dec
    seen.clear()
    method.target = "train"
    method.loss(batch())
    assert seen == [(5, True), (3, False), (2, True)]


def test_an_iteration_moves_the_student_and_the_classifier() -> None:
    method, given = made(), batch()
    names = moved(method, given)
    assert {name for name, _ in method.named_parameters()} <= names
    method.zero_grad(set_to_none=True)
    method.begin_iteration(30)
    method.loss(given)["loss_classifier"].backward()
    reached = {name for name, value in method.named_parameters() if value.grad is not None}
    parts = {name.split(".")[0] if name.startswith("classifier") else name.split(".")[1] for name in reached}
    assert parts == {"backbone", "neck", "classifier"}


@pytest.mark.slow
def test_an_iteration_moves_all_of_the_network_on_lite0() -> None:
    settings = SETTINGS | dict(warmup=0.0)
    names = moved(build("GuidedMix", model="mitrans_lite0", **settings), batch(), iterations=2)
    method = build("GuidedMix", model="mitrans_lite0", **settings)
    assert {name for name in method.state_dict() if not name.startswith("data_preprocessor")} == names
    assert len([name for name in names if name.startswith("classifier")]) == 2


@pytest.mark.slow
def test_the_network_on_lite0_trains_and_resumes(
    toy_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, method="guidedmix", model="mitrans_lite0", iterations=2, crop=(64, 64))
    whole = train(toy_split, tmp_path / "whole", options)

    def interrupt(self: IterationSeed, runner: Any, batch_idx: int, *_: Any, **__: Any) -> None:
        if batch_idx == 0:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(IterationSeed, "after_train_iter", interrupt)
        with pytest.raises(Interrupted, match="iteration 1 of 2"):
            train(toy_split, tmp_path / "parts", options)
    parts = train(toy_split, tmp_path / "parts", replace(options, resume=True))
    first, second = (
        torch.load(run.checkpoints / "last.pth", weights_only=True)["state_dict"] for run in (whole, parts)
    )
    assert first.keys() == second.keys() > {"classifier.weight"}
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    assert {"decode.loss_ce", "loss_classifier", "loss_decoupling", "loss_unlabeled"} <= set().union(*lines), lines


@pytest.mark.parametrize("target", ["eval", "train"])
def test_the_mode_of_the_target(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``eval``: running statistics, and no dropout although the head has some; afterwards all modes are as before."""
    method, given = made(target=target), batch()
    method.student.decode_head.dropout = torch.nn.Dropout2d(0.5)
    frozen = method.student.backbone.layer1.eval()  # as norm_eval does
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    mixtures: list[torch.Tensor] = []
    blend, decouple = decoupling.blend, decoupling.decouple
    monkeypatch.setattr(decoupling, "blend", lambda *parts: mixtures.append(blend(*parts)) or mixtures[-1])
    monkeypatch.setattr(decoupling, "decouple", lambda m, o, *w, **k: pairs.append((m, o)) or decouple(m, o, *w, **k))
    method.loss(given)
    (mixed, partners), (paired, own) = pairs
    assert all(any(torch.equal(one, labeled) for labeled in own) for one in partners)
    reference = copy.deepcopy(method).eval()
    with torch.no_grad():
        evaluated = [passed(reference, images)[1].softmax(1) for images in (*mixtures, given["labeled_weak"]["inputs"])]
    for name, found, expected in zip(("mixed", "paired", "own"), (mixed, paired, own), evaluated, strict=True):
        assert torch.allclose(found, expected, atol=1e-5) is (target == "eval"), name
    assert not any(module.training for module in frozen.modules())
    assert all(module.training for name, module in method.named_modules() if "layer1" not in name)


@pytest.mark.parametrize("target", ["eval", "train"])
def test_mixtures_do_not_enter_the_running_statistics(target: str) -> None:
    method, given = made(target=target), batch()
    plain = made()
    method.loss(given)
    with torch.no_grad():
        passed(plain, torch.cat([view["inputs"] for view in given.values()]))
    for (name, own), other in zip(method.student.named_buffers(), plain.student.buffers(), strict=True):
        torch.testing.assert_close(own, other, msg=name)
    assert all(module.track_running_stats for module in method.modules() if hasattr(module, "track_running_stats"))


@pytest.mark.parametrize("pairs", ["similar", "random"])
def test_partners_are_mixed(monkeypatch: pytest.MonkeyPatch, pairs: str) -> None:
    """Similar partners are labeled copies of the unlabeled images, and copies of each other."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = decoupling.blend
    monkeypatch.setattr(decoupling, "blend", lambda a, b, weight: seen.append((a, b)) or original(a, b, weight))
    weak, _ = other_views(4)
    labeled = labeled_view(4)
    labeled["inputs"] = weak["inputs"][[2, 0, 2, 0]] + 1e-3 * torch.randn_like(weak["inputs"])
    labeled["inputs"][:2] = weak["inputs"][[2, 0]]
    method = made(pairs=pairs, bound="clip")
    chosen = []
    for _ in range(4):
        seen.clear()
        method.loss(dict(labeled_weak=labeled, unlabeled_weak=weak))
        (references, others), (seeds, partners) = seen
        assert torch.equal(others, weak["inputs"])
        assert torch.equal(seeds, labeled["inputs"])
        index = [
            [torch.equal(image, one) for one in labeled["inputs"]].index(True) for image in (*references, *partners)
        ]
        assert all(index[4 + n] != n for n in range(4))
        chosen.append(index)
    if pairs == "similar":
        assert [index[0] for index in chosen] == [1] * 4
        assert [index[2] for index in chosen] == [0] * 4
        assert [index[4:] for index in chosen] == [[2, 3, 0, 1]] * 4
    else:
        assert len({tuple(index) for index in chosen}) == 4


@pytest.mark.parametrize("durations", [(0.1, 0.2, 0.5), ("1 epochs", "2 epochs", "5 epochs")])
def test_l_dec_begins_after_the_warmup_and_l_usup_after_both(
    durations: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, given = made(**dict(zip(("warmup", "decoupling_warmup", "rampup"), durations, strict=True))), batch()
    method.begin_training(100, 10)
    passes: list[int] = []
    original = method.student.extract_feat
    monkeypatch.setattr(method.student, "extract_feat", lambda images: passes.append(len(images)) or original(images))
    monkeypatch.setattr(method, "unlabeled_loss", lambda *_: torch.ones(()))
    supervised, labeled = (
        ["decode.loss_ce", "loss_classifier"],
        ["decode.loss_ce", "loss_classifier", "loss_decoupling"],
    )
    # iteration: losses, images in each pass, omega
    stages = {
        0: (supervised, [2], None),
        9: (supervised, [2], None),
        10: (labeled, [2, 2, 2], None),
        29: (labeled, [2, 2, 2], None),
        30: ([*labeled, "loss_unlabeled"], [5, 2, 2], math.exp(-5)),
        55: ([*labeled, "loss_unlabeled"], [5, 2, 2], math.exp(-5 / 4)),
        80: ([*labeled, "loss_unlabeled"], [5, 2, 2], 1.0),
        99: ([*labeled, "loss_unlabeled"], [5, 2, 2], 1.0),
    }
    for iteration, (names, images, omega) in stages.items():
        passes.clear()
        method.zero_grad(set_to_none=True)
        method.begin_iteration(iteration)
        losses = method.loss(given)
        assert (sorted(losses), passes) == (names, images), iteration
        if omega is not None:
            assert losses["loss_unlabeled"].item() == pytest.approx(2.0 * omega), iteration
        total(losses).backward()
        assert all(parameter.grad is not None for parameter in method.parameters())


def test_hard_decoupling_of_equal_predictions_leaves_nothing_to_be_confident_of() -> None:
    method = made(decoupling="hard")
    assert method.messages == ["method.renormalize is raw in hard decoupling: M_mix - M_l sums to 0 over classes"]
    labeled = torch.tensor([0.9, 0.06, 0.03, 0.01]).view(1, 4, 1, 1)
    noise = torch.tensor([-2e-4, 1e-4, 1e-4, 0.0]).view(1, 4, 1, 1)
    for lambdas in (torch.full((1, 1, 1, 1), 0.3), 0.3):
        target = method.decoupled(labeled + noise, labeled, lambdas, "hard")
        torch.testing.assert_close(target, noise, atol=1e-7, rtol=0.0)
    stored = method.decoupled_probabilities(labeled + noise, labeled, 0.3)
    torch.testing.assert_close(stored, torch.full((1, 4, 1, 1), 0.25), atol=2e-4, rtol=0.0)
    other = torch.tensor([0.01, 0.06, 0.9, 0.03]).view(1, 4, 1, 1)
    stored = method.decoupled_probabilities(other, labeled, 0.3)  # positive: 0, 0, 0.87, 0.02; 0.11 is spread
    torch.testing.assert_close(stored.flatten(), torch.tensor([0.0275, 0.0275, 0.8975, 0.0475]))
    for _ in range(20):
        mixed, masks = torch.randn(2, 1, 4, 5, 5).mul(3).softmax(dim=2)
        stored = method.decoupled_probabilities(mixed, masks, 0.3)
        torch.testing.assert_close(stored.sum(1), torch.ones(1, 5, 5))
        assert torch.equal(stored.argmax(1), (mixed - masks).argmax(1))
    torch.testing.assert_close(method.decoupled_probabilities(mixed, masks, 0.0), mixed)


@pytest.mark.parametrize("decoupling_name", ["soft", "hard"])
def test_an_unmixed_image_learns_its_own_prediction(decoupling_name: str) -> None:
    method, given = made(mix_prob=0.0, decoupling=decoupling_name), batch()
    losses = method.loss(given)
    labeled, weak = given.values()
    with torch.no_grad():
        own = target_logits(method, weak["inputs"])[0].softmax(1)
        direct = passed(method, torch.cat((labeled["inputs"], weak["inputs"])))[1][2:].softmax(1)
    expected = (direct - own).square().sum(1)[weak["valid"]].mean().item()
    assert losses["loss_unlabeled"].item() == pytest.approx(method.omega() * expected, rel=1e-4)
    assert losses["loss_decoupling"].item() < 1e-10


def test_the_fcn_of_table_2_has_the_recipe_of_the_method(toy_split: Split) -> None:
    fcn, ours = (
        build_config(toy_split, TrainOptions(config=name, pretrained="none"))
        for name in ("supervised/voc_guidedmix_fcn", "guidedmix/voc")
    )
    assert (fcn.method.type, fcn.model.decode_head.type, fcn.model.backbone.depth) == ("Supervised", "FCNHead", 50)
    assert "neck" not in fcn.model
    for key in ("data", "schedule", "optimizer", "evaluation"):
        assert fcn[key] == ours[key], key


def test_similar_pairs_without_a_classifier_are_reported() -> None:
    (message,) = made(classifier_weight=0.0).messages
    assert "classifier_weight 0 leaves the paper's classifier out" in message
    assert made().messages == made(pairs="random", classifier_weight=0.0).messages == []


@pytest.mark.parametrize("name", [name for name in config_paths() if name.startswith("guidedmix/")])
def test_configs_with_similar_pairs_train_the_classifier(name: str) -> None:
    method = made(**{key: value for key, value in load_named(name).method.items() if key != "type"})
    assert method.pairs == "random" or method.classifier_weight > 0
    assert method.target == "eval"
    assert method.messages == []


def test_parts_can_be_left_out_and_other_networks_taken() -> None:
    method = build("GuidedMix", **SETTINGS | dict(classifier_weight=0.0, decoupling_weight=0.0, warmup=0.0))
    losses = method.loss(batch())
    assert sorted(losses) == ["decode.loss_ce", "loss_unlabeled"]
    assert not hasattr(method, "classifier")
    total(losses).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    other = build("GuidedMix", **SETTINGS)
    assert other.classifier.weight.shape == (CLASSES, 128)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(pairs="near"), "method.pairs 'near' is unknown; use one of: similar, random"),
        (dict(decoupling="none"), "method.decoupling 'none'"),
        (dict(space="masks"), "method.space 'masks'"),
        (dict(lambda_max=0.6), "method.lambda_max 0.6 is out of range"),
        (dict(alpha=0.0), "method.alpha"),
        (dict(mix_prob=1.5), "method.mix_prob 1.5 is not a probability"),
        (dict(target="teacher"), "method.target 'teacher'"),
        (dict(space="logits"), "normalize needs method.space probabilities"),
    ],
)
def test_invalid_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**settings)


def test_a_single_image_cannot_be_paired() -> None:
    with pytest.raises(UserError, match="--batch-size"):
        made().loss(batch(number=1))


@pytest.fixture
def run(workspace: Path, sslseg: Sslseg) -> Path:
    return sslseg("train", *SHORT, *METHOD, "--set", "method.lambda_max=0.3").path


def test_a_store_holds_decoupled_and_direct_masks(run: Path, sslseg: Sslseg) -> None:
    assert load(run / "config.py").method.lambda_max == 0.3
    path = sslseg("pseudolabel", "--predictor", "decoupled", "--references", "2", "--workers", "0").path
    assert path == run / "stores" / "unlabeled-decoupled.h5"
    store = StoreReader(path)
    assert tuple(store.kinds) == ("masks", "confidence", "entropy", "model_masks/direct")
    assert (store.provenance["predictor"], store.provenance["references"]) == ("decoupled", 2)
    verify_store(path)
    plain = StoreReader(sslseg("pseudolabel", "--workers", "0").path)
    method, split = build_method(find_model(run)), Split.load(run / "split")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))

    def read(sample: Any) -> torch.Tensor:
        image = torch.from_numpy(read_image(sample.image)[..., ::-1].copy()).permute(2, 0, 1).float()
        return (image - mean) / std

    @torch.inference_mode()
    def predict(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = method.student.extract_feat(image[None])
        logits = method.student.decode_head(features)
        return features[-1].mean((2, 3))[0], F.interpolate(logits, image.shape[1:], mode="bilinear").softmax(1)[0]

    references = [read(sample) for sample in split.samples("labeled")]
    for sample in split.samples("unlabeled")[:3]:
        image = read(sample)
        vector, direct = predict(image)
        assert (store.stored("model_masks/direct", sample.id) == direct.argmax(0).numpy()).mean() > 0.999
        assert np.array_equal(store.stored("model_masks/direct", sample.id), plain.mask(sample.id))
        order = sorted(references, key=lambda one: (predict(one)[0] - vector).norm().item())
        expected = torch.zeros(())
        for reference in order[:2]:
            mixed, labeled = predict(0.15 * reference + 0.85 * image)[1], predict(reference)[1]
            difference = (mixed - 0.15 * labeled).clamp_min(0)
            expected = expected + difference / difference.sum(0) / 2
        assert (store.mask(sample.id) == expected.argmax(0).numpy()).mean() > 0.999
        np.testing.assert_allclose(store.confidence(sample.id), expected.amax(0).numpy(), atol=1e-3)
    scores = json.loads(sslseg("eval", path, "--json").out)
    direct_scores = json.loads(sslseg("eval", plain.path, "--json").out)
    assert scores["other_masks"]["model_masks/direct"]["mIoU"] == direct_scores["mIoU"]


@pytest.mark.parametrize("space", ["probabilities", "logits"])
def test_without_mixing_a_store_s_masks_are_the_direct_ones(workspace: Path, sslseg: Sslseg, space: str) -> None:
    settings = ("--set", f"method.space={space}", "--set", "method.renormalize=raw")
    assert sslseg("train", *SHORT, *METHOD, "--set", "method.lambda_max=0", *settings).code == 0
    store = StoreReader(sslseg("pseudolabel", "--predictor", "decoupled", "--workers", "0").path)
    for name in store.ids:
        differing = (store.mask(name) != store.stored("model_masks/direct", name)).sum()
        assert differing <= (space == "logits")  # after a logarithm a tie may fall otherwise


def test_a_labeled_image_of_another_size_is_resized(run: Path) -> None:
    from sslseg.data.dataset import ImageDataset
    from sslseg.inference import Protocol, with_tta

    method, split = build_method(find_model(run)), Split.load(run / "split")
    references = ImageDataset(split.samples("labeled"), description=split.dataset, labeled=False)
    for protocol in (Protocol(), with_tta(Protocol()), Protocol("slide", (32, 32))):
        predictor = DecoupledPredictor.of(method, protocol, references=references, number=1)
        prediction = predictor([dict(inputs=torch.randint(0, 255, (3, 50, 71), dtype=torch.uint8))])[0]
        assert prediction.mask.shape == (50, 71)
        torch.testing.assert_close(prediction.probabilities.sum(0), torch.ones(50, 71))
    with pytest.raises(UserError, match="--references"):
        DecoupledPredictor.of(method, Protocol(), references=references, number=5)


LOADED = """
import sys, numpy as np
from mmseg.apis import inference_model, init_model
model = init_model(sys.argv[1] + "/config.py", sys.argv[1] + "/model.pth", device="cpu")
print(*inference_model(model, np.zeros((64, 80, 3), np.uint8)).pred_sem_seg.data.shape)
"""


@pytest.mark.slow
def test_an_exported_model_names_its_networks(run: Path, sslseg: Sslseg) -> None:
    folder = sslseg("export", run).path
    done = subprocess.run([sys.executable, "-c", LOADED, str(folder)], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "1 64 80", done.stderr


@pytest.mark.slow
def test_what_cannot_be_decoupled_is_refused(workspace: Path, run: Path, sslseg: Sslseg) -> None:
    other = sslseg("train", "--method", "supervised", *SHORT).path
    cases = {
        ("pseudolabel", other, "--predictor", "decoupled"): "a model of method Supervised has direct",
        (
            "pseudolabel",
            run,
            "--references",
            "2",
        ): "--references: predictor 'direct' does not compare with labeled images",
        (
            "pseudolabel",
            run,
            "--predictor",
            "decoupled",
            "--references",
            "9",
        ): "cannot be mixed with 9 of 4 labeled images",
        ("train", "--method", "gct", "--set", "method.lambda_max=0.2"): "method.lambda_max is not a setting of GCT",
        ("train", "--method", "guidedmix", "--set", "method.lambda_max=0.7", "--run-dir", "x"): "at most 0.5",
    }
    for arguments, message in cases.items():
        done = sslseg(*arguments)
        assert (done.code, done.out) == (2, "")
        assert message in done.err
        assert done.err.count("\n") == 1
