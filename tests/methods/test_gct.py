"""GCT: Eqs. (1) to (7) against slow references, what each step of the paper moves, and the fused prediction."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslseg.engine.optimizers import JointOptimizer, JointOptimizerConstructor
from sslseg.errors import UserError
from sslseg.inference import Predictor, Protocol
from sslseg.methods.base import data_sample
from sslseg.methods.gct.flaw_detector import FlawDetector
from sslseg.methods.gct.flaw_maps import clean_up, spread_errors
from sslseg.methods.gct.method import cosine_rampup
from tests.methods.conftest import CLASSES, IGNORE, SIZE, build, labeled_view, moved, other_views

SETTINGS: dict[str, Any] = dict(detector=dict(width=8), rampup=0.0)


def batch() -> dict[str, dict]:
    return dict(labeled_weak=labeled_view(), unlabeled_weak=other_views()[0])


def full(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)


def outputs(method: Any, given: dict[str, dict]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return all images and both models' softmax."""
    images = torch.cat([view["inputs"] for view in given.values()])
    models = (method.student, method.right)
    return images, [full(model.decode_head(model.extract_feat(images))).softmax(1) for model in models]


@pytest.mark.parametrize("threshold", [0.2, 0.6])
def test_losses_equal_the_paper_s_sums(threshold: float) -> None:
    method = build("GCT", **SETTINGS | dict(threshold=threshold))
    given = batch()
    labeled, unlabeled = given.values()
    unlabeled["valid"][:, 20:] = False
    losses = method.loss(given)
    images, predictions = outputs(method, given)
    flaws = method.detector(images.repeat(2, 1, 1, 1), torch.cat(predictions)).chunk(2)
    valid = torch.cat((labeled["labels"] != IGNORE, unlabeled["valid"]))[:, None]
    maps = [clean_up(flaw, valid) for flaw in flaws]
    consistency, correction, number, used = 0.0, 0.0, 0, [0, 0]
    for n in range(5):
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                counts = labeled["labels"][n, y, x] != IGNORE if n < 2 else unlabeled["valid"][n - 2, y, x]
                if not counts:
                    continue
                number += 1
                f = [m[n, 0, y, x].item() for m in maps]
                g = [1.0 if value > threshold else value for value in f]  # Eq. (4)
                for k in (0, 1):
                    if g[k] > g[1 - k]:  # Eq. (5)
                        difference = predictions[k][n, :, y, x] - predictions[1 - k][n, :, y, x]
                        consistency += difference.square().sum().item() / CLASSES
                        used[0] += 1
                    if f[0] > threshold and f[1] > threshold:  # Eqs. (6) and (7)
                        correction += flaws[k][n, 0, y, x].item() ** 2
                        used[1] += 1
    assert all(used)
    torch.testing.assert_close(losses["loss_consistency"].item(), 100.0 * consistency / number, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["loss_correction"].item(), correction / number, rtol=1e-4, atol=1e-5)


def test_the_detector_learns_c_of_both_predictions() -> None:
    method = build("GCT", **SETTINGS)
    given = batch()
    labeled = given["labeled_weak"]
    valid = (labeled["labels"] != IGNORE)[:, None]
    truth = F.one_hot(labeled["labels"].where(valid[:, 0], 0), CLASSES).permute(0, 3, 1, 2)
    _, predictions = outputs(method, given)
    own = torch.cat([prediction[:2] for prediction in predictions])
    errors = 0.5 * (own - truth.repeat(2, 1, 1, 1)).abs().sum(1, keepdim=True)
    targets = spread_errors(errors, valid.repeat(2, 1, 1, 1), nu=1)
    flaws = method.detector(labeled["inputs"].repeat(2, 1, 1, 1), own)
    squares = [
        float(s)
        for s, v in zip(((flaws - targets) ** 2).flatten(), valid.repeat(2, 1, 1, 1).flatten(), strict=True)
        if v
    ]
    torch.testing.assert_close(
        method.loss(given)["loss_detector"].item(), sum(squares) / len(squares), rtol=1e-4, atol=1e-5
    )


def test_the_detector_can_learn_from_the_errors_on_a_strong_view() -> None:
    """C(|T^k(A x_l) - B y|) where B y is a class; the models neither learn from A x_l nor let it into their statistics."""
    method = build("GCT", **SETTINGS | dict(detector_view="strong"))
    assert method.views == {"labeled": ("weak", "strong"), "unlabeled": ("weak",)}
    given = batch()
    with_strong = given | dict(labeled_strong=labeled_view())
    strong = with_strong["labeled_strong"]
    strong["labels"][:, :, 30:] = IGNORE
    valid = (strong["labels"] != IGNORE)[:, None].repeat(2, 1, 1, 1)
    truth = F.one_hot(strong["labels"].where(valid[:2, 0], 0), CLASSES).permute(0, 3, 1, 2).repeat(2, 1, 1, 1)
    losses = method.loss(with_strong)
    plain = build("GCT", **SETTINGS)
    others = plain.loss(given)
    for name, value in others.items():
        assert name == "loss_detector" or torch.equal(losses[name], value)
    for side in ("student", "right"):
        for name, value in getattr(plain, side).named_buffers():
            assert torch.equal(getattr(method, side).get_buffer(name), value), name
    with torch.no_grad():
        _, own = outputs(method.eval(), dict(strong=strong))
        targets = spread_errors(0.5 * (torch.cat(own) - truth).abs().sum(1, keepdim=True), valid, nu=1)
        flaws = method.train().detector(strong["inputs"].repeat(2, 1, 1, 1), torch.cat(own))
    torch.testing.assert_close(losses["loss_detector"], (flaws - targets).square()[valid].mean(), rtol=1e-4, atol=1e-5)
    assert gradients(method, with_strong, "loss_detector") == {
        f"detector.{n}" for n, _ in method.detector.named_parameters()
    }
    assert len(method.bare_passes(with_strong)) == len(plain.bare_passes(given))


def test_cross_fit_holds_out_half_of_the_labels_from_each_model() -> None:
    """At first left learns from even places, right from odd ones, F from left's errors on odd and right's on even ones."""
    method = build("GCT", **SETTINGS | dict(cross_fit=0.5))
    given = batch()
    labeled = given["labeled_weak"] = labeled_view(4) | dict(index=torch.tensor([7, 2, 3, 4]))
    odd = [True, False, True, False]

    def hidden(view: dict[str, Any], images: list[bool]) -> dict[str, Any]:
        masks = view["labels"].clone()
        masks[torch.tensor(images)] = IGNORE
        return view | dict(labels=masks, data_samples=list(map(data_sample, masks)))

    losses = method.loss(given)
    plain = build("GCT", **SETTINGS)
    for side, images in (("left", odd), ("right", [not one for one in odd])):
        expected = plain.loss(given | dict(labeled_weak=hidden(labeled, images)))
        for name in losses:
            if name.startswith(side):
                torch.testing.assert_close(losses[name], expected[name], msg=name)
                assert not torch.equal(losses[name], plain.loss(given)[name])
    _, predictions = outputs(method, given)
    truth = F.one_hot(labeled["labels"].where(labeled["labels"] != IGNORE, 0), CLASSES).permute(0, 3, 1, 2)
    own = torch.cat([prediction[:4] for prediction in predictions])
    valid = (labeled["labels"] != IGNORE)[:, None].repeat(2, 1, 1, 1)
    valid &= torch.tensor(odd + [not one for one in odd])[:, None, None, None]
    targets = spread_errors(0.5 * (own - truth.repeat(2, 1, 1, 1)).abs().sum(1, keepdim=True), valid, nu=1)
    squares = (method.detector(labeled["inputs"].repeat(2, 1, 1, 1), own) - targets).square()
    torch.testing.assert_close(losses["loss_detector"], squares[valid].mean(), rtol=1e-4, atol=1e-5)

    method.begin_iteration(50)
    later, now = method.loss(given), plain.loss(given)
    for name in ("left.decode.loss_ce", "right.decode.loss_ce"):
        torch.testing.assert_close(later[name], now[name])
    assert later["loss_detector"] == 0
    assert gradients(method, given, "loss_detector") == set()
    grads = [parameter.grad for parameter in method.detector.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads), "distributed training needs them"


def test_a_frozen_detector_stays_bit_equal_whatever_its_optimizer_remembers() -> None:
    method = build("GCT", **SETTINGS | dict(cross_fit=0.5))
    given = batch()
    given["labeled_weak"]["index"] = torch.tensor([0, 2])  # right has no labels in this batch: no loss, and no nan
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    changed = []
    for iteration in range(47, 53):
        before = [parameter.detach().clone() for parameter in method.detector.parameters()]
        method.begin_iteration(iteration)
        losses = method.loss(given)
        assert all(value.isfinite() for value in losses.values())
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        method.after_iteration()
        changed.append([not torch.equal(*pair) for pair in zip(method.detector.parameters(), before, strict=True)])
    assert all(map(all, changed[:3]))
    assert not any(map(any, changed[3:]))


def gradients(method: Any, given: dict, *names: str) -> set[str]:
    """Return which parameters these losses alone would move."""
    method.zero_grad(set_to_none=True)
    losses = method.loss(given)
    torch.stack([losses[name] for name in losses if name in names]).sum().backward()
    return {key for key, value in method.named_parameters() if value.grad is not None and value.grad.any()}


def test_step_1_moves_both_models_and_step_2_the_detector() -> None:
    method = build("GCT", **SETTINGS)
    given = batch()
    parts = {
        part: {n for n, _ in method.named_parameters() if n.startswith(part)}
        for part in ("student", "right", "detector")
    }
    assert gradients(method, given, "loss_detector") == parts["detector"]
    first = [name for name in method.loss(given) if name != "loss_detector"]
    assert gradients(method, given, *first) == parts["student"] | parts["right"]
    for name in ("loss_consistency", "loss_correction"):
        assert gradients(method, given, name) == parts["student"] | parts["right"]
    assert gradients(method, given, "left.decode.loss_ce") == parts["student"]
    assert all(parameter.requires_grad for parameter in method.detector.parameters())
    assert {name for name, _ in method.named_parameters()} <= moved(method, given)
    assert method.eval_model is method.student


def test_the_other_model_is_a_target_not_a_pupil() -> None:
    """L_dc pulls each model towards the other where the other is better, and only there."""
    method = build("GCT", **SETTINGS | dict(correction_weight=0.0))
    images = torch.randn(4, 3, *SIZE)
    valid = torch.ones(4, 1, *SIZE, dtype=torch.bool)
    predictions = [(4 * torch.randn(4, CLASSES, *SIZE)).softmax(1).requires_grad_() for _ in range(2)]
    with torch.no_grad():
        flaws = method.detector(images.repeat(2, 1, 1, 1), torch.cat(predictions)).chunk(2)
    one, other = (torch.where(clean_up(flaw) > 0.6, 1.0, clean_up(flaw))[:, 0] for flaw in flaws)
    method.collaborate(images, predictions, valid)["loss_consistency"].backward()
    for prediction, learns in ((predictions[0], one > other), (predictions[1], other > one)):
        gradient = prediction.grad.abs().sum(1) > 0
        assert learns.any()
        assert torch.equal(gradient, learns)


def test_without_unlabeled_images_both_models_train_as_the_baseline() -> None:
    method = build("GCT", **SETTINGS | dict(consistency_weight=0.0, correction_weight=0.0))
    assert method.views == {"labeled": ("weak",)}
    given = dict(labeled_weak=labeled_view())
    alone = []
    for model in (method.student, method.right):
        baseline = build("Supervised")
        baseline.student.load_state_dict(copy.deepcopy(model.state_dict()))
        moved(baseline, given, iterations=3)
        alone.append(baseline.student.state_dict())
    moved(method, given, iterations=3)
    for model, expected in zip((method.student, method.right), alone, strict=True):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, expected[name], msg=name)


def test_consistency_ramps_up_and_xi_chooses_the_constraint() -> None:
    given = batch()
    late = build("GCT", **SETTINGS | dict(rampup=0.5))
    plain = build("GCT", **SETTINGS)
    values = []
    for iteration in (0, 25, 50):
        late.begin_iteration(iteration)
        values.append(late.loss(given)["loss_consistency"] / plain.loss(given)["loss_consistency"])
    torch.testing.assert_close(torch.stack(values), torch.tensor([0.0, 0.5, 1.0]))
    assert cosine_rampup(0.1, 0.4) == pytest.approx(0.1464466)
    nothing = build("GCT", **SETTINGS | dict(threshold=1.0)).loss(given)
    assert nothing["loss_correction"] == 0
    assert nothing["loss_consistency"] > 0
    all_wrong = build("GCT", **SETTINGS | dict(threshold=-0.1)).loss(given)
    assert all_wrong["loss_consistency"] == 0
    assert all_wrong["loss_correction"] > 0
    with pytest.raises(UserError, match="linear"):
        build("GCT", **SETTINGS | dict(rampup_shape="linear"))


def test_switched_off_constraints_leave_no_trace() -> None:
    given = batch()
    assert "loss_correction" not in build("GCT", **SETTINGS | dict(correction_weight=0.0)).loss(given)
    assert "loss_consistency" not in build("GCT", **SETTINGS | dict(consistency_weight=0.0)).loss(given)


@pytest.mark.parametrize("norm", ["bn", "ibn"])
@pytest.mark.parametrize("size", [(96, 96), (65, 90)])
def test_the_detector_is_the_one_of_appendix_b(norm: str, size: tuple[int, int]) -> None:
    detector = FlawDetector(21, norm=norm)
    convolutions = [layer for layer in detector.layers if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 128, 256, 256, 512, 512, 1]
    assert [layer.stride[0] for layer in convolutions] == [2, 2, 1, 2, 1, 2, 1, 2]
    assert {layer.kernel_size for layer in convolutions} == {(4, 4)}
    assert convolutions[0].in_channels == 24
    assert detector.layers(torch.randn(2, 24, *size)).shape[2:] == (-(-size[0] // 32), -(-size[1] // 32))
    assert detector(torch.randn(2, 3, *size), torch.rand(2, 21, *size)).shape == (2, 1, *size)
    halves = [m for m in detector.modules() if isinstance(m, torch.nn.InstanceNorm2d)]
    assert len(halves) == (7 if norm == "ibn" else 0)
    with pytest.raises(UserError, match="gn"):
        FlawDetector(21, norm="gn")


def test_flaw_maps_are_stretched_from_corner_to_corner() -> None:
    """Bilinear with align_corners (Appendix B): the pixel x of W lies at x (w - 1) / (W - 1) of the w values."""
    detector = FlawDetector(CLASSES, width=8).eval()
    images, predictions = torch.randn(1, 3, *SIZE), torch.rand(1, CLASSES, *SIZE)
    with torch.no_grad():
        values = detector.layers(torch.cat((images, predictions), dim=1))[0, 0].numpy()
        flaws = detector(images, predictions)[0, 0].numpy()
    rows, columns = (np.arange(size) * (n - 1) / (size - 1) for size, n in zip(SIZE, values.shape, strict=True))
    wide = np.stack([np.interp(columns, np.arange(len(row)), row) for row in values])
    expected = np.stack([np.interp(rows, np.arange(len(column)), column) for column in wide.T]).T
    assert min(values.shape) > 1
    np.testing.assert_allclose(flaws, expected, atol=1e-5)


def test_the_fused_mask_takes_each_pixel_from_the_less_flawed_model() -> None:
    method = build("GCT", **SETTINGS).eval()
    samples = [dict(inputs=torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)) for _ in range(2)]
    fused = method.predictors["fused"].of(method, Protocol())(samples)
    sides = [Predictor(model, Protocol())(samples) for model in (method.student, method.right)]
    chosen = set()
    for n, prediction in enumerate(fused):
        for y in range(0, SIZE[0], 3):
            for x in range(0, SIZE[1], 3):
                flaws = [float(prediction.maps[f"flaw_maps/{side}"][y, x]) for side in ("left", "right")]
                k = 0 if flaws[0] <= flaws[1] else 1
                chosen.add(k)
                assert prediction.mask[y, x] == sides[k][n].mask[y, x]
                torch.testing.assert_close(prediction.probabilities[:, y, x], sides[k][n].probabilities[:, y, x])
        for side, own in zip(("left", "right"), sides, strict=True):
            assert torch.equal(prediction.maps[f"model_masks/{side}"], own[n].mask)
            assert 0 <= prediction.maps[f"flaw_maps/{side}"].min() <= prediction.maps[f"flaw_maps/{side}"].max() <= 1
            # A flaw means the same as in training: what Eq. (4) compares with xi.
            normalized = Predictor(method.student, Protocol()).normalized([samples[n]["inputs"]])
            with torch.no_grad():
                flaw = clean_up(method.detector(normalized, own[n].probabilities[None]))[0, 0]
            torch.testing.assert_close(prediction.maps[f"flaw_maps/{side}"], flaw, rtol=1e-4, atol=1e-5)
            assert flaw.max() > 0.6 > flaw.min()
    assert chosen == {0, 1}


class TwoParts(torch.nn.ModuleDict):
    optimizers: ClassVar[dict[str, dict[str, Any]]] = {"off": dict(type="Adam")}  # a part that is switched off


def joint(**more: Any) -> tuple[torch.nn.Module, Any]:
    torch.manual_seed(0)
    model = TwoParts(dict(one=torch.nn.Linear(2, 2), two=torch.nn.Linear(2, 2)))
    settings = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1, momentum=0.9))
    parts = dict(two=dict(type="Adam", lr=0.01), off=dict(type="Adam"))
    return model, JointOptimizerConstructor(settings | dict(parts=parts | more))(model)


def update(model: torch.nn.Module, wrapper: Any) -> None:
    wrapper.update_params(sum((part(torch.ones(1, 2)) ** 2).sum() for part in model.values()))


def test_every_part_has_its_own_optimizer_and_resumes_exactly() -> None:
    model, wrapper = joint()
    references = [copy.deepcopy(part) for part in model.values()]
    optimizers = [
        torch.optim.SGD(references[0].parameters(), lr=0.1, momentum=0.9),
        torch.optim.Adam(references[1].parameters(), lr=0.01),
    ]
    states = []
    for number in range(4):
        if number == 2:
            states = [copy.deepcopy(model.state_dict()), copy.deepcopy(wrapper.state_dict())]
        update(model, wrapper)
        for part, optimizer in zip(references, optimizers, strict=True):
            optimizer.zero_grad()
            (part(torch.ones(1, 2)) ** 2).sum().backward()
            optimizer.step()
    for part, reference in zip(model.values(), references, strict=True):
        assert torch.equal(part.weight, reference.weight)
    again, resumed = joint()
    again.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    assert isinstance(resumed.optimizer, JointOptimizer)
    for _ in range(2):
        update(again, resumed)
    assert torch.equal(again["two"].weight, model["two"].weight)
    assert torch.equal(again["one"].weight, model["one"].weight)
    assert [group["lr"] for group in resumed.optimizer.param_groups] == [0.1, 0.01]
    for group in resumed.optimizer.param_groups:
        group["lr"] = 0.0
    update(again, resumed)
    assert torch.equal(again["two"].weight, model["two"].weight), "schedulers reach every part after resuming"


def test_a_missing_part_is_named() -> None:
    with pytest.raises(UserError, match="three"):
        joint(three=dict(type="Adam"))
