"""GCT's baselines and the student of stored masks: losses against slow references, and which parameters they move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sslseg.errors import UserError
from sslseg.methods.gct.flaw_maps import clean_up
from sslseg.methods.s4l import rotate_quarters
from tests.methods.conftest import CLASSES, IGNORE, SIZE, build, labeled_view, moved, other_views, square, total

ADV: dict[str, Any] = dict(
    discriminator=dict(width=4),
    semi_weight=0.1,
    threshold=0.505,
)
MT: dict[str, Any] = dict(weight=2.0, rampup=0.0, decay=0.9, detector=dict(width=8))


def full(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)


def logits_of(method: Any, images: torch.Tensor) -> torch.Tensor:
    return full(method.student.decode_head(method.student.extract_feat(images)))


def gradients(method: Any, given: dict, name: str) -> set[str]:
    method.zero_grad(set_to_none=True)
    method.loss(given)[name].backward()
    return {
        key.split(".")[0] for key, value in method.named_parameters() if value.grad is not None and value.grad.any()
    }


def pair() -> dict[str, dict]:
    return dict(labeled_weak=labeled_view(), unlabeled_weak=other_views()[0])


def test_adversarial_losses_equal_the_paper_s_sums() -> None:
    method = build("AdvSSL", **ADV)
    given = pair()
    labeled, unlabeled = given.values()
    method.begin_iteration(30)
    losses = method.loss(given)
    logits = logits_of(method, torch.cat((labeled["inputs"], unlabeled["inputs"])))
    counted = torch.cat((labeled["labels"] != IGNORE, unlabeled["valid"]))[:, None]
    predictions = logits.softmax(1) * counted  # elsewhere the discriminator reads 0
    truth = F.one_hot(labeled["labels"].where(labeled["labels"] != IGNORE, 0), CLASSES).permute(0, 3, 1, 2).float()
    truth = truth * counted[:2]
    verdicts, real = method.discriminator(predictions).sigmoid(), method.discriminator(truth).sigmoid()
    sums: dict[str, list[float]] = dict(own=[], other=[], fake=[], real=[], semi=[])
    valid = 0
    for n in range(5):
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                true = verdicts[n, 0, y, x]
                if n < 2 and labeled["labels"][n, y, x] != IGNORE:
                    sums["own"].append(-true.log().item())
                    sums["fake"].append(-(1 - true).log().item())
                    sums["real"].append(-real[n, 0, y, x].log().item())
                elif n >= 2 and unlabeled["valid"][n - 2, y, x]:
                    valid += 1
                    sums["other"].append(-true.log().item())
                    if true > 0.505:
                        sums["semi"].append(-logits[n, :, y, x].log_softmax(0).max().item())
    means = {name: sum(values) / max(len(values), 1) for name, values in sums.items()}
    assert 0 < len(sums["semi"]) < valid
    expected = dict(
        loss_adversarial=0.01 * means["own"],
        loss_adversarial_unlabeled=0.001 * means["other"],
        loss_semi=0.1 * sum(sums["semi"]) / valid,
        loss_discriminator=means["fake"] + means["real"],
    )
    for name, value in expected.items():
        torch.testing.assert_close(losses[name].item(), value, rtol=1e-3, atol=1e-6, msg=name)
    method.begin_iteration(24)
    assert method.loss(given)["loss_semi"] == 0
    assert "loss_semi" not in build("AdvSSL", **ADV | dict(semi_weight=0.0)).loss(given)


def test_the_discriminator_and_the_segmentor_move_apart() -> None:
    method = build("AdvSSL", **ADV)
    given = pair()
    assert gradients(method, given, "loss_discriminator") == {"discriminator"}
    assert gradients(method, given, "loss_adversarial") == {"student"}
    assert gradients(method, given, "loss_adversarial_unlabeled") == {"student"}
    assert {name for name, _ in method.named_parameters()} <= moved(method, given)


def test_rotations_are_quarters() -> None:
    images = torch.arange(4 * 3 * 5 * 5.0).reshape(4, 3, 5, 5)
    rotated = rotate_quarters(images, torch.tensor([0, 1, 2, 3]))
    for n in range(4):
        expected = images[n]
        for _ in range(n):
            expected = torch.stack([torch.stack([expected[:, y, 4 - x] for y in range(5)], 1) for x in range(5)], 1)
        assert torch.equal(rotated[n], expected)


def test_rotation_loss_is_the_cross_entropy_of_upright_and_rotated_images() -> None:
    method = build("S4L", classifier=dict(width=4))
    given = {name: square(view) for name, view in pair().items()}
    given["unlabeled_weak"]["valid"][:] = True
    given["unlabeled_weak"]["valid"][0, :, -3:] = False  # padding at the right
    given["labeled_weak"]["labels"][1, -2:] = IGNORE  # and at the bottom
    torch.manual_seed(5)
    losses = method.loss(given)
    torch.manual_seed(5)
    quarters = torch.randint(1, 4, (5,))
    upright = torch.cat([view["inputs"] for view in given.values()])
    everything = torch.cat(
        (upright, torch.stack([image.rot90(int(q), (1, 2)) for image, q in zip(upright, quarters, strict=True)]))
    )
    logits = method.student.decode_head(method.student.extract_feat(everything))
    logits = F.interpolate(logits, everything.shape[2:], mode="bilinear", align_corners=False)
    angles = torch.cat((torch.zeros(5, dtype=torch.int64), quarters))
    expected = [-method.classifier(logits)[n].log_softmax(0)[angles[n]] for n in range(10) if n % 5 not in (1, 2)]
    torch.testing.assert_close(losses["loss_rotation"], 0.1 * torch.stack(expected).mean())
    assert gradients(method, given, "loss_rotation") == {"student", "classifier"}
    with pytest.raises(UserError, match="square"):
        method.loss(pair())


@pytest.mark.parametrize("weighted", [False, True])
def test_a_student_learns_from_trusted_pixels(weighted: bool) -> None:
    method = build("SelfTraining", weight=0.5)
    _, strong = other_views(pseudo=True)
    if weighted:
        strong["pseudo_weights"] = torch.rand(3, *SIZE)
    given = dict(labeled_weak=labeled_view(), unlabeled_strong=strong)
    logits = logits_of(method, torch.cat((given["labeled_weak"]["inputs"], strong["inputs"])))[2:]
    sums, weights = 0.0, 0.0
    for n in range(3):
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                if strong["pseudo_masks"][n, y, x] != IGNORE:
                    weight = float(strong["pseudo_weights"][n, y, x]) if weighted else 1.0
                    sums -= weight * logits[n, :, y, x].log_softmax(0)[strong["pseudo_masks"][n, y, x]].item()
                    weights += weight
    torch.testing.assert_close(method.loss(given)["loss_pseudo"].item(), 0.5 * sums / weights, rtol=1e-4, atol=1e-6)
    assert {name for name, _ in method.named_parameters()} <= moved(method, given)


def test_the_teacher_is_followed_where_the_flaw_detector_trusts_it() -> None:
    """GCT, Sec. 4.5."""
    method = build("MeanTeacher", **MT)
    with torch.no_grad():
        method.student.decode_head.conv_seg.weight.add_(torch.randn_like(method.student.decode_head.conv_seg.weight))
    weak, _ = other_views()
    given = dict(labeled_weak=labeled_view(), unlabeled_weak=weak, unlabeled_strong=weak)
    images = torch.cat((given["labeled_weak"]["inputs"], weak["inputs"]))
    predictions, targets = logits_of(method, images).softmax(1), method.teacher(weak["inputs"])
    with torch.no_grad():
        flaws = method.detector(weak["inputs"].repeat(2, 1, 1, 1), torch.cat((predictions[2:], targets))).chunk(2)
    student, teacher = (clean_up(flaw, weak["valid"][:, None]) for flaw in flaws)
    followed = weak["valid"] & (teacher <= student)[:, 0]
    assert 0 < followed.sum() < weak["valid"].sum()
    squares = (predictions[2:] - targets).square().mean(1)[followed]
    losses = method.loss(given)
    torch.testing.assert_close(losses["loss_consistency"], 2.0 * squares.mean())
    assert gradients(method, given, "loss_detector") == {"detector"}
    assert gradients(method, given, "loss_consistency") == {"student"}
    assert "loss_detector" not in build("MeanTeacher", **MT | dict(detector=None)).loss(given)
    assert total(losses) > 0
