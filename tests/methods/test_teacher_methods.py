"""Mean Teacher and CutMix: the teacher, the targets, the losses, and what moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslseg.artifacts.run import Run
from sslseg.config.build import TrainOptions, build_config
from sslseg.distributed import launch
from sslseg.engine.build import build_training
from sslseg.errors import UserError
from sslseg.methods.ema import EMA, Teacher
from sslseg.splits.split import Split
from sslseg.train import train
from tests.methods.conftest import build, labeled_view, moved, other_views, total

MT = dict(weight=2.0, rampup=0.0, decay=0.9)
MIX = dict(consistency="ce", rampup=0.0, threshold=0.3, decay=0.9)


def batch(**more: Any) -> dict[str, dict]:
    weak, strong = other_views(**more)
    return dict(labeled_weak=labeled_view(), unlabeled_weak=weak, unlabeled_strong=strong)


def predict(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    logits = network.decode_head(network.extract_feat(images))
    return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


@pytest.mark.parametrize("start", [1.0, 10.0])
def test_teacher_is_the_ema_of_all_state_and_never_trains(start: float) -> None:
    method = build("MeanTeacher", **MT | dict(decay=0.9 if start == 1 else 0.5, decay_start=start))
    student, teacher = method.student, method.teacher
    expected = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    method.begin_training(10)
    for iteration in range(12):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        student(torch.randn(4, 3, 40, 48), mode="tensor")  # moves BatchNorm's statistics
        method.begin_iteration(iteration)
        method.after_iteration()
        decay = min(1 - start / (iteration + start), 0.9 if start == 1 else 0.5)
        for name, value in student.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value
    for name, value in teacher.network.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)
    method.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert method.eval_model is teacher.network


def test_teacher_follows_a_student_that_was_moved_to_other_tensors() -> None:
    method = build("MeanTeacher", **MT)
    method.double()  # as a move to a device does: buffers become new tensors
    method.teacher._pairs = None
    method.teacher.update(method.student, 0.0)
    for name, value in method.student.state_dict().items():
        assert torch.equal(method.teacher.network.state_dict()[name], value)


@pytest.mark.parametrize("geometry", [False, True])
@pytest.mark.parametrize("consistency", ["mse", "ce"])
def test_mean_teacher_loss_equals_the_slow_one(consistency: str, geometry: bool) -> None:
    method = build("MeanTeacher", **MT | dict(consistency=consistency))
    given = batch(geometry=geometry)
    labeled, weak, strong = given.values()
    losses = method.loss(given)
    method.train()
    logits = predict(method.student, torch.cat((labeled["inputs"], strong["inputs"])))
    targets = predict(method.teacher.network, weak["inputs"]).softmax(1)
    supervised = F.cross_entropy(logits[:2], labeled["labels"], ignore_index=255)
    values = []
    for n in range(3):
        for y in range(40):
            for x in range(48):
                source = x + 3 if geometry else x
                if strong["valid"][n, y, x]:
                    p, t = logits[2 + n, :, y, x].softmax(0), targets[n, :, y, source]
                    values.append(((p - t) ** 2).mean() if consistency == "mse" else -(t * p.log()).sum())
    torch.testing.assert_close(losses["decode.loss_ce"], supervised)
    torch.testing.assert_close(losses["loss_consistency"], 2.0 * torch.stack(values).mean())


@pytest.mark.parametrize("name", ["MeanTeacher", "CutMix"])
def test_consistency_ramps_up(name: str) -> None:
    method = build(name, **(MT if name == "MeanTeacher" else MIX) | dict(rampup=0.5))
    given = batch()
    weights = []
    for iteration in (0, 25, 50, 99):
        method.begin_iteration(iteration)
        torch.manual_seed(0)
        weights.append(method.loss(given)["loss_consistency"].detach())
    ratios = torch.stack(weights) / weights[-1]
    torch.testing.assert_close(ratios, torch.exp(-5 * torch.tensor([1.0, 0.25, 0.0, 0.0])), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["MeanTeacher", "CutMix"])
def test_the_student_learns_and_the_teacher_only_follows(name: str) -> None:
    method = build(name, **(MT if name == "MeanTeacher" else MIX))
    given = batch()
    total(method.loss(given)).backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert all(parameter.grad is not None for parameter in method.student.parameters())
    names = moved(method, given, iterations=2)
    for part in ("student.", "teacher.network."):
        learned = {part + key for key, _ in method.student.named_parameters()}
        assert learned <= names, sorted(learned - names)[:3]


def test_unlabeled_images_teach_the_student() -> None:
    given = batch()
    plain, other = (build("MeanTeacher", **MT) for _ in range(2))
    plain.weight = 0.0
    moved(plain, given)
    moved(other, given)
    assert not torch.equal(plain.student.decode_head.conv_seg.weight, other.student.decode_head.conv_seg.weight)


@pytest.mark.parametrize("consistency", ["ce", "mse", "hard"])
@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize("mix", ["cutmix", "cutout", "classmix"])
def test_cutmix_loss_equals_the_slow_one(
    mix: str, per_pixel: bool, consistency: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build("CutMix", **MIX | dict(mix=mix, per_pixel=per_pixel, consistency=consistency))
    given = batch()
    labeled, weak, strong = given.values()
    kept = torch.rand(3, 1, 5, 6).gt(0.5).repeat_interleave(8, 2).repeat_interleave(8, 3)
    monkeypatch.setattr("sslseg.functional.mixing.rectangles", lambda *a, **k: kept)
    monkeypatch.setattr("sslseg.functional.mixing.class_masks", lambda *a, **k: kept)
    losses = method.loss(given)
    predicted = predict(method.teacher.network, weak["inputs"]).softmax(1)
    images, targets, valid = torch.zeros_like(strong["inputs"]), torch.zeros_like(predicted), strong["valid"].clone()
    for n in range(3):
        for y in range(40):
            for x in range(48):
                if kept[n, 0, y, x] or mix == "cutout":
                    source = n
                else:
                    source = (n + 1) % 3
                if mix != "cutout" or kept[n, 0, y, x]:
                    images[n, :, y, x] = strong["inputs"][source, :, y, x]
                targets[n, :, y, x] = predicted[source, :, y, x]
                valid[n, y, x] = strong["valid"][source, y, x] and (mix != "cutout" or kept[n, 0, y, x])
    logits = predict(method.student, torch.cat((labeled["inputs"], images)))[2:]
    if consistency == "hard":
        values = F.cross_entropy(logits, targets.argmax(1), reduction="none")
    elif consistency == "ce":
        values = -(targets * logits.log_softmax(1)).sum(1)
    else:
        values = (logits.softmax(1) - targets).square().mean(1)
    confident = targets.amax(1) > 0.3
    expected = values[valid & confident].mean() if per_pixel else values[valid].mean() * confident[valid].float().mean()
    assert 0 < confident[valid].float().mean() < 1
    torch.testing.assert_close(losses["loss_consistency"], expected)


@pytest.mark.parametrize(
    "name", ["AEL", "AugSeg", "CutMix", "FixMatch", "MeanTeacher", "ThreeStage", "U2PL", "UniMatchV2"]
)
def test_every_teacher_takes_the_start_of_its_decay(name: str) -> None:
    method = build(name, decay_start=7.0)
    assert all(ema.start == 7.0 for ema, _ in method.ema_pairs())
    assert method.ema_pairs()
    with pytest.raises(UserError, match="decay_start"):
        build(name, decay_start=0.0)


def test_a_larger_start_forgets_the_first_iterations() -> None:
    """With k = 1 the EMA of 0, 1, ..., 9 is their mean; with k = 9 it spans little more than the last ones."""
    value = nn.Linear(1, 1, bias=False)
    found = []
    for start in (1.0, 9.0):
        ema = EMA(value, [], start)
        for iteration in range(10):
            nn.init.constant_(value.weight, float(iteration))
            ema.follow(value, iteration=iteration, decay=1.0)
        found.append(float(ema.network.weight.detach()))
    assert found[0] == pytest.approx(4.5)
    expected = 0.0
    for iteration in range(10):
        expected += (9 / (iteration + 9)) * (iteration - expected)
    assert found[1] == pytest.approx(expected)
    assert expected > 7.5


def test_cutmix_refuses_single_images_and_unknown_choices() -> None:
    with pytest.raises(UserError, match="unlabeled-batch-size"):
        build("CutMix", **MIX).loss(batch(number=1))
    for name, wrong in (("mix", "mixup"), ("consistency", "soft")):
        with pytest.raises(UserError, match=wrong):
            build("CutMix", **MIX | {name: wrong})
    with pytest.raises(UserError, match="kl"):
        build("MeanTeacher", **MT | dict(consistency="kl"))


def test_teacher_can_be_copied_from_any_segmentor() -> None:
    method = build("MeanTeacher", **MT)
    teacher = Teacher(method.student, [(0.0, 0.9)])
    images = torch.randn(2, 3, 40, 48)
    method.student.eval()
    torch.testing.assert_close(teacher(images), predict(method.student, images).softmax(1))


@pytest.mark.parametrize("method", ["mean-teacher", "cutmix"])
def test_in_training_the_teacher_follows_every_iteration(
    tmp_path: Path, toy_split: Split, trained: Path, method: str
) -> None:
    """With a decay of 0 the teacher must end as the student, otherwise as a mean of the student's states."""
    options = TrainOptions(
        method=method,
        model="deeplabv3plus_r18s",
        iterations=3,
        batch_size=2,
        crop=(48, 48),
        workers=0,
        pretrained=str(trained / "checkpoints/last.pth"),
    )
    states = []
    for decay in (0.0, 1.0):
        run = train(toy_split, tmp_path / str(decay), replace(options, assignments={"method.decay": decay}))
        states.append(torch.load(run.checkpoints / "last.pth", weights_only=True)["state_dict"])
    name = "decode_head.conv_seg.weight"
    assert torch.equal(states[0][f"student.{name}"], states[0][f"teacher.network.{name}"])
    # The plain mean of the weights of the first three iterations.
    assert not torch.equal(states[1][f"student.{name}"], states[1][f"teacher.network.{name}"])


def test_the_first_iteration_already_sees_the_given_weights(tmp_path: Path, toy_split: Split, trained: Path) -> None:
    given = torch.load(trained / "checkpoints/last.pth", weights_only=True)["state_dict"]
    options = TrainOptions(
        method="cutmix",
        model="deeplabv3plus_r18s",
        batch_size=2,
        crop=(48, 48),
        workers=0,
        pretrained=str(trained / "checkpoints/last.pth"),
    )
    launch("none", "cpu")
    training = build_training(Run(tmp_path), toy_split, build_config(toy_split, options), options)
    try:
        for name, value in training.runner.model.teacher.network.state_dict().items():
            assert torch.equal(value, given[f"student.{name}"]), name
    finally:
        training.close()
