"""FixMatch, UniMatch V1 and V2: labels from the weak view, terms of L, mixing with other images, dropped channels, what moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslseg.errors import UserError
from sslseg.functional.pseudo_labels import PseudoLabels
from sslseg.methods.fixmatch import mix_view
from sslseg.methods.unimatch_v2 import complementary_masks
from tests.methods.conftest import build, labeled_view, moved, other_views, total

TAU = 0.32
FAMILY = {"FixMatch": dict(decay=0.9), "UniMatchV2": dict(decay=0.9), "UniMatch": {}}


def batch(number: int = 3, *, geometry: bool = False) -> dict[str, dict[str, Any]]:
    weak, strong = other_views(number, geometry=geometry)
    second = dict(strong, inputs=strong["inputs"] + 0.3 * torch.randn_like(strong["inputs"]))
    return dict(labeled_weak=labeled_view(), unlabeled_weak=weak, unlabeled_strong=strong, unlabeled_strong_2=second)


def full(head: torch.nn.Module, features: Any) -> torch.Tensor:
    return F.interpolate(head(features), (40, 48), mode="bilinear", align_corners=False)


def slow_term(logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return the sum of -log p(argmax target) where max target >= tau, over the number of valid pixels."""
    values, count = [], 0
    for n in range(len(logits)):
        for y in range(40):
            for x in range(48):
                if valid[n, y, x]:
                    count += 1
                    target = targets[n, :, y, x]
                    if target.max() >= TAU:
                        values.append(-logits[n, :, y, x].log_softmax(0)[target.argmax()])
    assert 0 < len(values) < count, "the threshold must divide the pixels"
    return torch.stack(values).sum() / count


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Boxes that are not drawn but given; True where an image keeps its own pixels."""
    box = torch.zeros(3, 1, 40, 48, dtype=torch.bool)
    box[0, 0, 5:20, 7:30] = box[2, 0, 15:40, 20:48] = True
    monkeypatch.setattr("sslseg.methods.fixmatch.small_boxes", lambda *a, **k: box)
    return ~box


def mixed(maps: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    other = torch.stack([maps[(n + 1) % 3] for n in range(3)])
    return torch.where(kept if maps.dim() == 4 else kept[:, 0], maps, other)


@pytest.mark.parametrize("geometry", [False, True])
@pytest.mark.parametrize("name", ["FixMatch", "UniMatchV2"])
def test_the_loss_with_a_teacher_equals_the_slow_one(name: str, geometry: bool, kept: torch.Tensor) -> None:
    settings = dict(dropout=False) if name == "UniMatchV2" else {}
    method = build(name, threshold=TAU, weight=2.0, **FAMILY[name], **settings)
    given = batch(geometry=geometry)
    losses = method.loss(given)
    method.train()
    labeled, weak, *strong = list(given.values())[: 3 if name == "FixMatch" else 4]
    teacher = method.teacher.network
    targets = full(teacher.decode_head, teacher.extract_feat(weak["inputs"])).softmax(1)
    if geometry:  # what the strong view shows of the weak one
        targets = torch.cat((targets[..., 3:], torch.zeros_like(targets[..., :3])), dim=3)
    images = torch.cat((labeled["inputs"], *(mixed(view["inputs"], kept) for view in strong)))
    logits = full(method.student.decode_head, method.student.extract_feat(images))
    terms = [
        slow_term(logits[start : start + 3], mixed(targets, kept), mixed(view["valid"], kept))
        for start, view in zip((2, 5), strong, strict=False)
    ]
    supervised = F.cross_entropy(logits[:2], labeled["labels"], ignore_index=255)
    torch.testing.assert_close(losses["decode.loss_ce"], 0.5 * supervised)
    torch.testing.assert_close(losses["loss_unlabeled"], 0.5 * 2.0 * sum(terms) / len(terms))


def test_the_loss_of_unimatch_equals_the_slow_one(kept: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslseg.methods.unimatch.F.dropout2d", lambda level, p: level * channels(level))
    method = build("UniMatch", threshold=TAU, weight=2.0)

    def channels(level: torch.Tensor) -> torch.Tensor:  # every second channel, doubled
        return 2.0 * (torch.arange(level.shape[1]) % 2)[None, :, None, None]

    given = batch()
    losses = method.loss(given)
    method.train()
    labeled, weak, first, second = given.values()
    features = method.student.extract_feat(torch.cat((labeled["inputs"], weak["inputs"])))
    both = [torch.cat((level, level[2:] * channels(level))) for level in features]
    logits = full(method.student.decode_head, both)
    targets = logits[2:5].softmax(1)
    images = torch.cat([mixed(view["inputs"], kept) for view in (first, second)])
    strong = full(method.student.decode_head, method.student.extract_feat(images))
    valid = mixed(weak["valid"], kept)
    terms = [slow_term(part, mixed(targets, kept), valid) for part in (strong[:3], strong[3:])]
    supervised = F.cross_entropy(logits[:2], labeled["labels"], ignore_index=255)
    torch.testing.assert_close(losses["decode.loss_ce"], 0.5 * supervised)
    torch.testing.assert_close(losses["loss_strong"], 0.5 * 2.0 * 0.25 * (terms[0] + terms[1]))
    torch.testing.assert_close(losses["loss_features"], 0.5 * 2.0 * 0.5 * slow_term(logits[5:], targets, weak["valid"]))


@pytest.mark.parametrize("name", FAMILY)
def test_no_gradient_reaches_the_labels(name: str) -> None:
    """What teaches is detached: with a single view that is also the strong one, gradients would otherwise meet."""
    method = build(name, threshold=0.0, mix_prob=0.0, **FAMILY[name])
    given = batch()
    seen: list[torch.Tensor] = []
    original = PseudoLabels.of.__func__

    def watch(cls: type, probabilities: torch.Tensor, valid: torch.Tensor) -> PseudoLabels:
        seen.append(probabilities)
        return original(cls, probabilities, valid)

    PseudoLabels.of = classmethod(watch)  # type: ignore[method-assign, assignment]
    try:
        total(method.loss(given)).backward()
    finally:
        PseudoLabels.of = classmethod(original)  # type: ignore[method-assign, assignment]
    assert seen
    assert not any(values.requires_grad for values in seen)
    assert all(parameter.grad is not None for parameter in method.student.parameters())
    if method.teacher is not None:
        assert all(parameter.grad is None for parameter in method.teacher.parameters())


@pytest.mark.parametrize("name", FAMILY)
def test_all_of_the_student_moves_and_the_teacher_follows(name: str) -> None:
    method = build(name, threshold=0.0, **FAMILY[name])
    names = moved(method, batch(), iterations=2)
    parts = ["student."] + (["teacher.network."] if method.teacher is not None else [])
    for part in parts:
        assert {part + key for key, _ in method.student.named_parameters()} <= names
    assert method.eval_model is (method.student if method.teacher is None else method.teacher.network)


@pytest.mark.parametrize("name", FAMILY)
def test_unconfident_and_invalid_pixels_teach_nothing(name: str) -> None:
    for settings, valid in ((dict(threshold=1.1), True), (dict(threshold=0.0), False)):
        method = build(name, **settings, **FAMILY[name])
        given = batch()
        for key, view in given.items():
            if not key.startswith("labeled"):
                view["valid"][:] = valid
        losses = method.loss(given)
        assert all(float(value.detach()) == 0 for key, value in losses.items() if key.startswith("loss_"))


def test_partners_are_other_images_of_the_batch() -> None:
    """The first implementations of UniMatch and CPS mixed an image mostly with another crop of itself."""
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 32, 32)
    labels = PseudoLabels(images[:, 0].long(), images[:, 0] / 4, torch.ones(4, 32, 32, dtype=torch.bool))
    for _ in range(20):
        mixture, mixed_labels = mix_view(dict(inputs=images), labels, prob=1.0)
        for n in range(4):
            found = mixture[n].unique().tolist()
            assert sorted(found) == sorted([n, (n + 1) % 4])
        assert torch.equal(mixed_labels.classes, mixture[:, 0].long())
        assert torch.equal(mixed_labels.confidence, mixture[:, 0] / 4)


def test_a_batch_of_one_cannot_be_mixed() -> None:
    with pytest.raises(UserError, match="mix_prob=0"):
        build("FixMatch", **FAMILY["FixMatch"]).loss(batch(1))
    build("FixMatch", mix_prob=0.0, **FAMILY["FixMatch"]).loss(batch(1))


def test_masks_are_complementary_and_half_of_the_images_keep_all_channels() -> None:
    untouched = torch.tensor([True, False, False])
    masks = complementary_masks(3, 400, untouched).squeeze()
    first, second = masks.chunk(2)
    assert torch.equal(first + second, torch.full_like(first, 2.0))
    assert bool((first[0] == 1).all())
    assert set(first[1:].unique().tolist()) == {0.0, 2.0}
    assert 0.35 < float((first[1:] == 0).float().mean()) < 0.65
    assert not torch.equal(first[1], first[2])


@pytest.mark.parametrize(("number", "touched"), [(4, 2), (5, 3)])
def test_levels_of_one_width_share_their_masks_and_labeled_images_keep_theirs(number: int, touched: int) -> None:
    method = build("UniMatchV2", decay=0.9)
    widths = (32, 48, 32)
    features = [torch.ones(2 + 2 * number, width, 3, 3) for width in widths]
    first, other, third = method.perturb(features, 2)
    assert torch.equal(first, third)
    for level in (first, other):
        assert bool((level[:2] == 1).all()), "labeled images"
        assert int((level[2 : 2 + number] != 1).flatten(1).any(1).sum()) == touched
        assert torch.equal(level[2 : 2 + number] + level[2 + number :], torch.full_like(level[2 : 2 + number], 2.0))


@pytest.mark.parametrize("name", ["UniMatch", "UniMatchV2"])
def test_features_that_are_no_maps_are_refused(name: str) -> None:
    method = build(name, **FAMILY[name])
    method.student.backbone.forward = lambda images: [(level, level) for level in [images]]
    with pytest.raises(UserError, match="not maps of channels"):
        method.loss(batch())


@pytest.mark.parametrize("name", FAMILY)
def test_bare_passes_take_the_images_of_an_iteration(name: str) -> None:
    """As many images enter the student and the teacher as in ``loss``."""
    method = build(name, threshold=0.0, **FAMILY[name])
    given = batch()
    counts: dict[str, list[int]] = {}
    for network, label in ((method.student, "student"), (method.teacher and method.teacher.network, "teacher")):
        for part in ("backbone", "decode_head") if network else ():
            module, key = getattr(network, part), f"{label}.{part}"
            module.register_forward_pre_hook(
                lambda module, inputs, key=key: counts.setdefault(key, []).append(
                    len(inputs[0]) if torch.is_tensor(inputs[0]) else len(inputs[0][0])
                )
            )
    method.loss(given)
    of_loss = {key: sum(values) for key, values in counts.items()}
    counts.clear()
    method.bare_passes(given)
    assert {key: sum(values) for key, values in counts.items()} == of_loss


@pytest.mark.parametrize("name", [*FAMILY, "AugSeg"])
def test_the_weight_of_pseudo_labels_ramps_up(name: str) -> None:
    method = build(name, threshold=0.0, rampup=0.5, weight=2.0, **FAMILY.get(name, {}))
    given = batch()
    totals = []
    for iteration in (0, 25, 50, 99):
        method.begin_iteration(iteration)
        torch.manual_seed(0)
        np.random.seed(0)
        losses = method.loss(given)
        totals.append(sum(value.detach() for key, value in losses.items() if key.startswith("loss_")))
    ratios = torch.stack(totals) / totals[-1]
    torch.testing.assert_close(ratios, torch.exp(-5 * torch.tensor([1.0, 0.25, 0.0, 0.0])), rtol=1e-3, atol=1e-5)
