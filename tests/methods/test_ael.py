"""AEL: its loss against a slow reference, and what it moves; U2PL with its equalization."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sslseg.config.build import TrainOptions, build_config
from sslseg.methods.ael.method import copy_paste
from sslseg.splits.split import Split
from tests.methods.conftest import CLASSES, SIZE, build, moved
from tests.methods.test_u2pl import SETTINGS as U2PL
from tests.methods.test_u2pl import batch, probabilities

OFF: dict[str, Any] = dict(momentum=0.9, gamma=2.0, cutmix=False, copy_paste=False, sampling=False, reweighting=True)
ON = dict.fromkeys(OFF, True) | dict(momentum=0.9, gamma=2.0)


def made(**more: Any) -> Any:
    return build("AEL", **dict(weight=2.0, rampup=0.0, decay=0.9, equalizer=OFF) | more)


def u2pl(**more: Any) -> Any:
    method = build("U2PL", **U2PL | dict(mix="ael", equalizer=ON) | more)
    method.begin_training(100, iterations_per_epoch=10)
    method.begin_iteration(20)
    return method


def halves(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Mix the left half of each image with the right half of the next one."""
    kept = torch.zeros(3, 1, *SIZE, dtype=torch.bool)
    kept[..., : SIZE[1] // 2] = True
    monkeypatch.setattr("sslseg.methods.ael.equalizer.rectangles", lambda *a, **k: kept)
    return kept


def test_the_loss_is_weighted_by_the_teacher_s_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    method = made()
    kept = halves(monkeypatch)
    given = batch()
    labeled, weak, strong = given.values()
    targets = probabilities(method.teacher.network, weak["inputs"])
    targets = torch.where(kept, targets, targets.roll(-1, 0))
    images = torch.where(kept, strong["inputs"], strong["inputs"].roll(-1, 0))
    own = probabilities(method.student, torch.cat((labeled["inputs"], images)))[2:]
    confidence, classes = targets.max(1)
    weights = (confidence**2)[strong["valid"]]
    losses = -own.gather(1, classes[:, None])[:, 0].log()[strong["valid"]]
    expected = 2.0 * (weights * losses).sum() / weights.sum()
    torch.testing.assert_close(method.loss(given)["loss_unlabeled"], expected, rtol=1e-3, atol=1e-4)


def test_with_all_parts_on_each_acts_in_its_place() -> None:
    """Each part has its own test (``test_ael_equalizer``); here they follow each other with the same random numbers."""
    method = made(equalizer=ON)
    equalizer = method.equalizer
    given = batch()
    labeled, weak, strong = given.values()

    def start() -> None:
        torch.manual_seed(2)
        equalizer.confidence.copy_(torch.tensor([0.9, 0.2, 0.6, 0.4]))
        equalizer.observations.fill_(3)

    start()
    losses, bank = method.loss(given), equalizer.confidence.clone()
    start()
    pasted = copy_paste(equalizer, labeled)
    assert not torch.equal(pasted["labels"], labeled["labels"])
    targets = probabilities(method.teacher.network, weak["inputs"])
    images, targets, valid = equalizer.mix(strong["inputs"], targets, strong["valid"])
    assert not torch.equal(images, strong["inputs"])
    supervised, logits, _ = method.supervise(pasted, images)
    torch.testing.assert_close(losses["decode.loss_ce"], supervised["decode.loss_ce"])
    own = logits.detach().softmax(1)
    for c in range(CLASSES):
        mean = own[:2, c][pasted["labels"] == c].mean()
        before = [0.9, 0.2, 0.6, 0.4][c]
        assert bank[c] == pytest.approx(0.75 * before + 0.25 * float(mean), abs=1e-5)  # the fourth observation
    equalizer.confidence.copy_(bank)
    confidence, classes = targets.max(1)
    weights = equalizer.weights(own[2:].argmax(1), confidence) * valid
    assert weights[valid].eq(0).any()
    terms = -own[2:].gather(1, classes[:, None])[:, 0].log()
    torch.testing.assert_close(losses["loss_unlabeled"].detach(), 2.0 * (weights * terms).sum() / weights.sum())


def test_it_moves_the_student_and_the_bank_and_uses_no_gradient_of_the_teacher() -> None:
    method = made(equalizer=ON)
    changed = moved(method, batch())
    learned = {name for name, value in method.named_parameters() if value.requires_grad}
    assert learned <= changed
    assert {name.partition(".")[0] for name in learned} == {"student"}
    assert "equalizer.confidence" in changed


@pytest.mark.parametrize("name", ["ael/voc_u2pl", "u2pl/cityscapes_ael"])
def test_the_bank_forgets_over_the_same_fraction_of_a_shorter_training(toy_split: Split, name: str) -> None:
    def config(**options: Any) -> Any:
        return build_config(toy_split, TrainOptions(config=name, pretrained="none", **options))

    full = config()
    assert full.method.equalizer.momentum == 0.999
    tenth = config(iterations=full.schedule.iterations // 10)
    assert tenth.method.equalizer.momentum == pytest.approx(0.999**10)
    assert tenth.method.decay == pytest.approx(0.99**10)


@pytest.mark.parametrize(("sampling", "reweighting"), [(True, True), (True, False), (False, True), (False, False)])
def test_reliable_pixels_of_u2pl_are_sampled_and_weighted(
    monkeypatch: pytest.MonkeyPatch, sampling: bool, reweighting: bool
) -> None:
    method = u2pl(equalizer=OFF | dict(sampling=sampling, reweighting=reweighting), contrast_weight=0.0, alpha=0.0)
    kept = halves(monkeypatch)
    given = batch()
    labeled, weak, strong = given.values()
    targets = probabilities(method.teacher.network, weak["inputs"])
    confidence, classes = torch.where(kept, targets, targets.roll(-1, 0)).max(1)
    images = torch.where(kept, strong["inputs"], strong["inputs"].roll(-1, 0))
    own = probabilities(method.student, torch.cat((labeled["inputs"], images)))[2:].detach()
    predicted = own.argmax(1)
    common = int(predicted.flatten().mode().values)
    method.equalizer.confidence.zero_()[common] = 1.0  # its pixels are never sampled, all others always
    monkeypatch.setattr(method.equalizer, "observe", lambda *arguments: None)
    total, weights, reliable = 0.0, 0.0, 0
    entropy = -(probabilities(method.teacher.network, images) + 1e-12).log()
    entropy = (entropy * probabilities(method.teacher.network, images)).sum(1)
    limit = entropy[strong["valid"]].max()  # alpha is 0: only the pixel of the highest entropy is left out
    for place in (strong["valid"] & (entropy < limit)).nonzero().tolist():
        n, y, x = place
        reliable += 1
        weight = float(confidence[n, y, x]) ** 2 if reweighting else 1.0
        if sampling and predicted[n, y, x] == common:
            weight = 0.0
        weights += weight
        total -= weight * float(own[n, classes[n, y, x], y, x].log())
    expected = strong["valid"].numel() / reliable * total / weights
    assert method.loss(given)["loss_unlabeled"].item() == pytest.approx(expected, rel=1e-3)


def test_u2pl_learns_from_equalized_images() -> None:
    method, plain = u2pl(), u2pl(mix="cutmix")
    given = batch()
    before = given["labeled_weak"]["labels"].clone()
    losses = [one.loss(given) for one in (method, plain)]
    assert losses[0]["decode.loss_ce"] != losses[1]["decode.loss_ce"]  # labeled images are copy-pasted
    assert losses[0]["loss_unlabeled"] > 0
    assert torch.equal(given["labeled_weak"]["labels"], before)
    assert method.equalizer.confidence.any()
    assert plain.equalizer is None
    method.begin_iteration(0)
    method.equalizer.confidence.zero_()
    method.loss(given)
    assert method.equalizer.confidence.any()  # it is updated during the warm start, too
