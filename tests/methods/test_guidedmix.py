"""GuidedMix-Net: Eqs. (2), (3) and (7) to (12) against slow references, what learns, and the pseudo-masks of a store."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslseg.artifacts.find import build_method, find_model
from sslseg.config.files import load
from sslseg.data.reading import read_image
from sslseg.errors import UserError
from sslseg.methods.guidedmix import DecoupledPredictor, decoupling
from sslseg.splits.split import Split
from sslseg.store import StoreReader, verify_store
from tests.conftest import SHORT, Sslseg
from tests.methods.conftest import CLASSES, IGNORE, SIZE, build, labeled_view, moved, other_views, total

SETTINGS: dict[str, Any] = dict(
    unlabeled_weight=2.0, decoupling_weight=0.7, classifier_weight=0.3, rampup=0.5, warmup=0.1
)
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
    """Return the last encoder feature and the full-size logits of one training pass."""
    features = method.student.extract_feat(images)
    logits = method.student.decode_head(features)
    return features[-1], F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)


def remaining(mixed: list[float], labeled: list[float], weight: float, renormalize: str) -> list[float]:
    values = [m - weight * p for m, p in zip(mixed, labeled, strict=True)]
    if renormalize != "raw":
        values = [max(value, 0.0) for value in values]
    return [value / max(sum(values), 1e-6) for value in values] if renormalize == "normalize" else values


@pytest.mark.parametrize(
    "settings",
    [
        {},
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
        mixed, paired = passed(method, torch.stack(mixtures))[1], passed(method, torch.stack(pairs))[1]
    if method.space == "probabilities":
        logits, mixed, paired = (value.softmax(1) for value in (logits, mixed, paired))
    unlabeled, number, between, labeled_pixels = 0.0, 0, 0.0, 0
    hard = method.decoupling == "hard"
    hard_pairs = (method.labeled_decoupling or method.decoupling) == "hard"
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            for k in range(3):
                if weak["valid"][k, y, x]:
                    weight = 1.0 if hard else LAMBDAS[3][k]
                    target = remaining(
                        mixed[k, :, y, x].tolist(), logits[partners[k], :, y, x].tolist(), weight, method.renormalize
                    )
                    unlabeled += sum((a - b) ** 2 for a, b in zip(target, logits[2 + k, :, y, x].tolist(), strict=True))
                    number += 1
            for n in range(2):
                if labels[1 - n, y, x] != IGNORE:
                    weight = 1.0 if hard_pairs else LAMBDAS[2][n]
                    target = remaining(
                        paired[n, :, y, x].tolist(), logits[n, :, y, x].tolist(), weight, method.renormalize
                    )
                    between += sum((a - b) ** 2 for a, b in zip(target, logits[1 - n, :, y, x].tolist(), strict=True))
                    labeled_pixels += 1
    omega = 2.0 * math.exp(-5 * (1 - 0.3 / 0.5) ** 2)
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
    supervised = F.cross_entropy(labeled_logits, labels, ignore_index=IGNORE, reduction="sum") / labels.numel()
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


def test_mixtures_do_not_enter_the_running_statistics() -> None:
    method, given = made(), batch()
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


def test_warmup_uses_labeled_images_only() -> None:
    method, given = made(), batch()
    method.begin_iteration(9)
    assert sorted(method.loss(given)) == ["decode.loss_ce", "loss_classifier"]
    total(method.loss(given)).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    method.begin_iteration(10)
    assert "loss_unlabeled" in method.loss(given)


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
    return sslseg("train", "--method", "guidedmix", "--set", "method.lambda_max=0.3", *SHORT).path


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
    assert sslseg("train", "--method", "guidedmix", "--set", "method.lambda_max=0", *settings, *SHORT).code == 0
    store = StoreReader(sslseg("pseudolabel", "--predictor", "decoupled", "--workers", "0").path)
    for name in store.ids:
        assert np.array_equal(store.mask(name), store.stored("model_masks/direct", name))


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
    other = sslseg("train", *SHORT).path
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
