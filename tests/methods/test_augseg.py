"""AugSeg: L against a slow reference, adaptive label injection, boxes, the published settings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslseg.config.build import TrainOptions, build_config
from sslseg.config.lengths import batch_counts
from sslseg.engine.build import transforms_of
from sslseg.errors import UserError
from sslseg.functional.pseudo_labels import PseudoLabels
from sslseg.inference import Protocol
from sslseg.methods import augseg
from sslseg.methods.augseg import clipped_boxes, image_confidence
from sslseg.registry import MODELS
from sslseg.splits.split import Split
from tests.methods.conftest import IGNORE, SIZE, build, labeled_view, moved, other_views
from tests.methods.test_fixmatch import full

TAU = 0.32


def made(**settings: Any) -> Any:
    return build("AugSeg", threshold=TAU, decay=0.9, **settings)


def batch(number: int = 3) -> dict[str, dict[str, Any]]:
    weak, strong = other_views(number)
    return dict(labeled_weak=labeled_view(), unlabeled_weak=weak, unlabeled_strong=strong)


@pytest.mark.parametrize("injection", [True, False])
def test_the_loss_equals_the_slow_one(monkeypatch: pytest.MonkeyPatch, injection: bool) -> None:
    """Images 0 and 2 are not confident and get labeled pixels, 1 does not; everything is then mixed pixel by pixel."""
    first, second = torch.zeros(3, 1, *SIZE, dtype=torch.bool), torch.zeros(3, 1, *SIZE, dtype=torch.bool)
    first[:, 0, 8:30, 10:40] = True
    second[0, 0, 5:25, 7:30] = second[1, 0, 20:40, :20] = second[2, 0, 10:36, 20:48] = True
    boxes = iter([first, second] if injection else [second])
    monkeypatch.setattr(augseg, "clipped_boxes", lambda *a, **k: next(boxes))
    monkeypatch.setattr(augseg, "image_confidence", lambda *a: torch.tensor([0.0, 1.0, 0.0]))
    method, given = made(injection=injection, weight=2.0), batch()
    torch.manual_seed(3)
    losses = method.loss(given)
    torch.manual_seed(3)
    torch.rand(3)
    chosen = torch.randint(2, (3,)).tolist()
    assert len(set(chosen)) == 2
    method.train()
    labeled, weak, strong = given.values()
    teacher = method.teacher.network
    targets = full(teacher.decode_head, teacher.extract_feat(weak["inputs"])).softmax(1).detach()
    images, labels = strong["inputs"].clone(), {}
    injected = pasted = 0
    for n in range(3):
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                source = (n + 1) % 3 if second[n, 0, y, x] else n
                label = int(targets[source, :, y, x].argmax()), float(targets[source, :, y, x].max())
                valid = bool(strong["valid"][source, y, x])
                images[n, :, y, x] = strong["inputs"][source, :, y, x]
                if injection and source != n and source in (0, 2) and first[source, 0, y, x]:
                    images[n, :, y, x] = labeled["inputs"][chosen[source], :, y, x]
                    truth = int(labeled["labels"][chosen[source], y, x])
                    label, valid = (truth, 1.0), truth != IGNORE
                    injected += 1
                pasted += source != n
                if valid:
                    labels[n, y, x] = label
    assert pasted > injected
    assert (injected > 0) == injection
    logits = full(method.student.decode_head, method.student.extract_feat(torch.cat((labeled["inputs"], images))))
    terms = [
        -logits[2 + n, :, y, x].log_softmax(0)[label]
        for (n, y, x), (label, confidence) in labels.items()
        if confidence >= TAU
    ]
    assert len(terms) < len(labels)
    supervised = F.cross_entropy(logits[:2], labeled["labels"], ignore_index=IGNORE)
    torch.testing.assert_close(losses["decode.loss_ce"], supervised)
    torch.testing.assert_close(losses["loss_unlabeled"], 2.0 * torch.stack(terms).sum() / len(labels))


def test_an_image_s_confidence_equals_the_slow_one() -> None:
    probabilities = (3 * torch.randn(2, 4, 6, 5)).softmax(1)
    valid = torch.rand(2, 6, 5) < 0.7
    for n, found in enumerate(image_confidence(probabilities, valid).tolist()):
        values = []
        for y, x in valid[n].nonzero().tolist():
            p = probabilities[n, :, y, x].tolist()
            values.append(max(p) * (1 + sum(q * math.log(q) for q in p) / math.log(4)))
        assert found == pytest.approx(sum(values) / len(values), rel=1e-4)
    certain = F.one_hot(torch.zeros(1, 6, 5).long(), 4).movedim(3, 1).float()
    assert image_confidence(certain, torch.ones(1, 6, 5).bool()).item() == pytest.approx(1.0)
    assert image_confidence(torch.full((1, 4, 6, 5), 0.25), torch.ones(1, 6, 5).bool()).item() == pytest.approx(0.0)
    assert image_confidence(certain, torch.zeros(1, 6, 5).bool()).item() == 0.0


def test_labeled_pixels_are_pasted_with_one_minus_the_confidence() -> None:
    method = made()
    images = torch.zeros(4, 3, *SIZE)
    labels = PseudoLabels(torch.zeros(4, *SIZE).long(), torch.full((4, *SIZE), 0.5), torch.ones(4, *SIZE).bool())
    labeled = dict(inputs=torch.ones(2, 3, *SIZE), labels=torch.tensor([2, IGNORE])[:, None, None].expand(2, *SIZE))
    confidence = torch.tensor([0.0, 0.3, 0.8, 1.0])
    times, classes = torch.zeros(4), set()
    for _ in range(400):
        made_images, made_labels = method.inject(images, labels, labeled, confidence)
        inside = made_images[:, 0] == 1
        times += inside.flatten(1).any(1)
        classes |= set(made_labels.classes[inside & made_labels.valid].tolist())
        assert bool((made_labels.confidence == torch.where(inside, 1.0, 0.5)).all())
        assert bool(made_labels.valid[~inside].all())
        assert int(made_labels.classes.max()) <= 2, "pixels without a label are invalid, and of no class"
    assert classes == {2}
    assert times[3] == 0
    for n, expected in enumerate((1.0, 0.7, 0.2)):
        assert float(times[n]) / 400 == pytest.approx(expected, abs=0.08)  # an empty box is possible, but rare


def test_areas_follow_their_beta_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    areas: list[float] = []

    def watch(number: int, size: tuple[int, int], area: float, **more: Any) -> torch.Tensor:
        areas.append(area)
        return clipped_boxes(number, size, area, **more)

    monkeypatch.setattr(augseg, "clipped_boxes", watch)
    method, view = made(), other_views()[1]
    labels = PseudoLabels(torch.zeros(3, *SIZE).long(), torch.ones(3, *SIZE), view["valid"])
    np.random.seed(0)
    for _ in range(500):
        method.mix_images(view["inputs"], labels, labeled_view(), torch.zeros(3))
    for found, (a, b) in ((areas[::2], (2, 8)), (areas[1::2], (4, 4))):  # 1 - lambda
        assert np.mean(found) == pytest.approx(a / (a + b), abs=0.02)
        assert np.var(found) == pytest.approx(a * b / ((a + b) ** 2 * (a + b + 1)), rel=0.2)


@pytest.mark.parametrize("area", [0.1, 0.5, 0.9])
def test_boxes_are_cut_off_at_the_border(area: float) -> None:
    boxes = clipped_boxes(2000, (32, 40), area, device=torch.device("cpu"))[:, 0]
    high, wide = (2 * (int(side * area**0.5) // 2) for side in (32, 40))
    rows, columns = boxes.any(2), boxes.any(1)
    assert torch.equal(boxes, rows[:, :, None] & columns[:, None, :])
    for marks, length in ((rows, high), (columns, wide)):
        side = marks.shape[1]
        expected = [  # every center from the first eighth on is as likely
            min(center + length // 2, side) - max(center - length // 2, 0) for center in range(side // 8, side)
        ]
        lengths = marks.sum(1)
        assert set(lengths.tolist()) <= set(expected)
        assert float(lengths.float().mean()) == pytest.approx(np.mean(expected), rel=0.05)
        assert bool((marks.int().diff(dim=1).abs().sum(1) <= 2).all()), "one piece"


def test_only_the_student_learns() -> None:
    method, given = made(), batch()
    names = moved(method, given, iterations=2)
    for part in ("student.", "teacher.network."):
        assert {part + name for name, _ in method.student.named_parameters()} <= names
    assert all(value.grad is None for value in method.teacher.parameters())
    assert method.eval_model is method.teacher.network


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(UserError, match="only one"):
        made().loss(batch(1))


# Dataset: crop, epochs, rate of the encoder, of the head, weight decay, threshold, EMA decay, protocol.
PUBLISHED = {
    "voc": (513, 80, 1e-3, 10.0, 1e-4, 0.95, 0.999, "whole"),
    "cityscapes": (800, 240, 1e-2, 1.0, 5e-4, 0.0, 0.996, "slide 800x800 stride 533x533"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_those_of_the_paper(toy_split: Split, name: str) -> None:
    crop, epochs, rate, head, decay, threshold, ema, protocol = PUBLISHED[name]
    config = build_config(toy_split, TrainOptions(config=f"augseg/{name}", pretrained="none"))
    assert config.schedule.iterations == epochs * math.ceil(len(toy_split.unlabeled) / 16)
    assert batch_counts(config, ("labeled", "unlabeled")) == dict(labeled=16, unlabeled=16)
    assert (tuple(config.data.crop), tuple(config.data.scale), config.data.flip) == ((crop, crop), (0.5, 2.0), 0.5)
    optimizer, schedule = config.optimizer, config.schedule
    assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("SGD", rate, 0.9, decay)
    assert ((config.get("paramwise") or {}).get("custom_keys", {}).get("decode_head", {}).get("lr_mult", 1.0)) == head
    assert (schedule.power, schedule.warmup) == (0.9, 0.0)
    assert str(Protocol(**config.evaluation)) == protocol
    assert transforms_of("strong", config) == [dict(type="RandomIntensity", num_ops=3)]
    settings = dict(threshold=threshold, weight=1.0, rampup=0.0, injection=True, decay=ema, decay_start=1.0)
    assert config.method == dict(type="AugSeg", **settings)
    if name == "cityscapes":  # 100,000 pixels of a rank's four images
        assert config.model.decode_head.sampler == dict(type="OHEMPixelSampler", thresh=0.7, min_kept=25000)
    config.model.backbone.update(depth=50, base_channels=8, stem_channels=8, norm_cfg=dict(type="BN"))
    backbone = MODELS.build(config.model.backbone)
    assert [block.conv2.dilation[0] for block in backbone.layer4] == [2, 4, 8]
    assert backbone(torch.zeros(2, 3, 64, 64))[-1].shape[-1] == 4
