"""AEL: its loss against a slow reference, and what it moves; U2PL with its equalization."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.methods.conftest import SIZE, build, moved
from tests.methods.test_u2pl import SETTINGS as U2PL
from tests.methods.test_u2pl import batch, probabilities

OFF: dict[str, Any] = dict(momentum=0.9, gamma=2.0, cutmix=False, copy_paste=False, sampling=False, reweighting=True)
ON = dict.fromkeys(OFF, True) | dict(momentum=0.9, gamma=2.0)


def made(**more: Any) -> Any:
    return build("AEL", **dict(weight=2.0, rampup=0.0, decay=0.9, equalizer=OFF) | more)


def test_the_loss_is_weighted_by_the_teacher_s_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    method = made()
    kept = torch.zeros(3, 1, *SIZE, dtype=torch.bool)
    kept[..., : SIZE[1] // 2] = True
    monkeypatch.setattr("sslseg.methods.ael.equalizer.rectangles", lambda *a, **k: kept)
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


def test_it_moves_the_student_and_the_bank_and_uses_no_gradient_of_the_teacher() -> None:
    method = made(equalizer=ON)
    changed = moved(method, batch())
    learned = {name for name, value in method.named_parameters() if value.requires_grad}
    assert learned <= changed
    assert {name.partition(".")[0] for name in learned} == {"student"}
    assert "equalizer.confidence" in changed


def test_u2pl_learns_from_equalized_images() -> None:
    settings = U2PL | dict(mix="ael", equalizer=ON)
    method = build("U2PL", **settings)
    plain = build("U2PL", **settings | dict(mix="cutmix"))
    for one in (method, plain):
        one.begin_training(100, iterations_per_epoch=10)
        one.begin_iteration(20)
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
