"""PrevMatch: L against a slow reference, what the memory holds over time and in checkpoints, the random ensemble."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslseg.errors import UserError
from sslseg.functional.pseudo_labels import PseudoLabels
from sslseg.methods.prevmatch import cross_entropy_by_confidence
from tests.methods.conftest import build, moved, total
from tests.methods.test_fixmatch import TAU, batch, full, mixed, slow_term

READS = ("aten::_local_scalar_dense", "aten::nonzero")


def made(copies: int = 0, **settings: Any) -> Any:
    """Return a method in iteration 30 of 100 whose memory holds that many different models."""
    method = build("PrevMatch", threshold=TAU, past_threshold=TAU, **settings)
    change_and_remember(method, copies)
    method.begin_iteration(30)
    return method


def change_and_remember(method: Any, copies: int, iteration: int = 0) -> None:
    interval, method.interval = method.interval, 0.01
    for _ in range(copies):
        change(method)
        method.begin_iteration(iteration)
        method.after_iteration()
    method.interval = interval


def change(method: Any) -> None:
    with torch.no_grad():
        for value in [*method.student.parameters(), *method.student.buffers()]:
            if value.is_floating_point():
                value.mul_(1.0 + 0.05 * torch.rand_like(value))


def state(module: torch.nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Boxes that are not drawn but given, and every second channel dropped instead of random ones."""
    box = torch.zeros(3, 1, 40, 48, dtype=torch.bool)
    box[0, 0, 5:20, 7:30] = box[2, 0, 15:40, 20:48] = True
    monkeypatch.setattr("sslseg.methods.fixmatch.small_boxes", lambda *a, **k: box)
    monkeypatch.setattr("sslseg.methods.unimatch.F.dropout2d", lambda level, p: level * channels(level))
    return ~box


def channels(level: torch.Tensor) -> torch.Tensor:
    return 2.0 * (torch.arange(level.shape[1]) % 2)[None, :, None, None]


def slow_mean_term(logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return the sum of -log p(argmax target) c over the number of valid pixels; c is the image's mean of max target."""
    values, count = [], 0
    for n in range(len(logits)):
        places = valid[n].nonzero().tolist()
        confidence = sum(float(targets[n, :, y, x].max()) for y, x in places) / len(places)
        count += len(places)
        for y, x in places:
            values.append(-confidence * logits[n, :, y, x].log_softmax(0)[targets[n, :, y, x].argmax()])
    return torch.stack(values).sum() / count


@pytest.mark.parametrize("trust", ["threshold", "mean"])
def test_the_loss_equals_the_slow_one(kept: torch.Tensor, monkeypatch: pytest.MonkeyPatch, trust: str) -> None:
    method = made(3, past_trust=trust, past_weight=0.5, weight=2.0)
    ensemble = [(method.past[2].network, 0.7), (method.past[0].network, 0.3)]
    monkeypatch.setattr(method, "sample", lambda: iter(ensemble))
    given = batch()
    losses = method.loss(given)
    method.train()
    labeled, weak, first, second = given.values()
    features = method.student.extract_feat(torch.cat((labeled["inputs"], weak["inputs"])))
    both = [torch.cat((level, level[2:] * channels(level))) for level in features]
    logits = full(method.student.decode_head, both)
    images = torch.cat([mixed(view["inputs"], kept) for view in (first, second)])
    strong = full(method.student.decode_head, method.student.extract_feat(images))
    valid = mixed(weak["valid"], kept)
    own = logits[2:5].softmax(1)
    past = sum(w * full(net.decode_head, net.extract_feat(weak["inputs"])) for net, w in ensemble).softmax(1)
    slow_past = slow_term if trust == "threshold" else slow_mean_term
    expected = {}
    for name, targets, term in (("own", own, slow_term), ("past", past, slow_past)):
        terms = [term(part, mixed(targets, kept), valid) for part in (strong[:3], strong[3:])]
        expected[name] = 0.25 * terms[0] + 0.25 * terms[1] + 0.5 * term(logits[5:], targets, weak["valid"])
    supervised = F.cross_entropy(logits[:2], labeled["labels"], ignore_index=255)
    weight = 0.5 * 0.6  # lambda after 30 of 100 iterations, 50 of which lead to its largest value
    torch.testing.assert_close(losses["decode.loss_ce"], supervised / (2 + weight))
    torch.testing.assert_close(losses["loss_strong"] + losses["loss_features"], 2.0 * expected["own"] / (2 + weight))
    torch.testing.assert_close(losses["loss_past"], weight * expected["past"] / (2 + weight))
    torch.testing.assert_close(
        total(losses), (supervised + 2.0 * expected["own"] + weight * expected["past"]) / (2 + weight)
    )


def test_images_are_weighted_by_their_own_confidence_and_padding_counts_nowhere() -> None:
    """The official implementation multiplies the sum of all by the sum of the confidences, padding included."""
    logits = torch.randn(2, 4, 40, 48)
    confidence = torch.cat((torch.full((1, 40, 48), 0.9), torch.full((1, 40, 48), 0.3)))
    valid = torch.ones(2, 40, 48, dtype=torch.bool)
    valid[1, :, 24:] = False
    confidence[1, :, 24:] = 0.99
    classes = logits.argmax(1)
    single = [
        F.cross_entropy(logits[n : n + 1, ..., : 48 - 24 * n], classes[n : n + 1, :, : 48 - 24 * n]) for n in (0, 1)
    ]
    expected = (0.9 * single[0] * 48 + 0.3 * single[1] * 24) / 72
    torch.testing.assert_close(cross_entropy_by_confidence(logits, PseudoLabels(classes, confidence, valid)), expected)


def test_lambda_is_a_triangle() -> None:
    method, given, values = made(2, mix_prob=0.0, dropout=0.0), batch(), []
    for iteration in (0, 1, 25, 50, 75, 99):
        method.begin_iteration(iteration)
        losses = method.loss(given)
        whole = method.predict(given).losses["decode.loss_ce"]
        values.append(float((whole / losses["decode.loss_ce"]).detach()) - 2)
        assert ("loss_past" in losses) == (iteration > 0)
    assert values == pytest.approx([0.0, 0.02, 0.5, 1.0, 0.5, 0.02], abs=1e-3)


def test_without_past_models_it_is_unimatch() -> None:
    given = batch()
    losses = []
    for method in (made(0, weight=2.0), build("UniMatch", threshold=TAU, weight=2.0)):
        torch.manual_seed(5)
        losses.append(method.loss(given))
    assert losses[0].keys() == losses[1].keys()
    for name in losses[0]:
        assert torch.equal(losses[0][name], losses[1][name]), name


@pytest.mark.parametrize(
    ("interval", "per_epoch", "every"), [(0.1, 1, 10), ("2 epochs", 7, 14), ("0.5 epochs", 9, 4), (0.001, 1, 1)]
)
def test_the_memory_holds_the_last_students_in_their_order(interval: Any, per_epoch: int, every: int) -> None:
    method = build("PrevMatch", interval=interval, memory=3)
    method.begin_training(100, per_epoch)
    expected: list[list[torch.Tensor]] = []
    for iteration in range(60):
        change(method)
        method.begin_iteration(iteration)
        method.after_iteration()
        if (iteration + 1) % every == 0:
            expected = [*expected, state(method.student)][-3:]
        assert len(method.past) == len(expected)
        if iteration % every in (0, every - 1):
            method.train()
            assert all(equal(state(past.network), one) for past, one in zip(method.past, expected, strict=True))
            assert not any(module.training for module in method.past.modules() if module is not method.past)
    assert len(expected) == 3


def test_past_models_neither_learn_nor_keep_gradients() -> None:
    method = made(2, interval=0.5)
    before = [state(past) for past in method.past]
    given = batch()
    names = moved(method, given, iterations=3)  # the next copy comes after more
    assert {f"student.{name}" for name, _ in method.student.named_parameters()} <= names
    assert not any(name.startswith("past.") for name in names)
    assert all(equal(state(past), one) for past, one in zip(method.past, before, strict=True))
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in method.past.parameters())
    assert method.eval_model is method.student


@pytest.mark.parametrize("stored", [0, 1, 3])
@pytest.mark.parametrize("present", [0, 2, 3])
def test_a_checkpoint_with_any_number_of_past_models_can_be_loaded(stored: int, present: int) -> None:
    saved = torch.nn.ModuleDict(dict(method=made(stored, memory=3)))
    method = build("PrevMatch", seed=3, memory=3, threshold=TAU, past_threshold=TAU)
    change_and_remember(method, present)
    target = torch.nn.ModuleDict(dict(method=method))
    missing, unexpected = target.load_state_dict(saved.state_dict())
    assert not missing
    assert not unexpected
    assert len(method.past) == stored
    assert equal(state(target), state(saved))
    both = [saved["method"], method]
    for one in both:  # and they go on alike
        torch.manual_seed(9)
        change_and_remember(one, 2, iteration=50)
    assert equal(state(both[0].past), state(both[1].past))
    given, losses = batch(), []
    for one in both:
        one.begin_iteration(60)
        torch.manual_seed(7)
        np.random.seed(7)
        losses.append(one.loss(given))
    assert "loss_past" in losses[0]
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


def test_the_ensemble_is_random() -> None:
    method = made(5, memory=5, ensemble=3)
    np.random.seed(0)
    numbers: Counter[int] = Counter()
    used: Counter[int] = Counter()
    first = []
    for _ in range(3000):
        networks, weights = zip(*method.sample(), strict=True)
        numbers[len(networks)] += 1
        assert len({id(network) for network in networks}) == len(networks)
        used.update(id(network) for network in networks)
        assert sum(weights) == pytest.approx(1.0)
        assert min(weights) >= 0.0
        if len(weights) == 3:
            first.append(weights[0])
    assert set(numbers) == {1, 2, 3}
    assert max(abs(numbers[k] - 1000) for k in numbers) < 120
    assert len(used) == 5
    assert max(used.values()) < 1.15 * min(used.values())
    # Dirichlet(1, 1, 1): each weight is Beta(1, 2), of mean 1/3 and variance 1/18.
    assert np.mean(first) == pytest.approx(1 / 3, abs=0.03)
    assert np.var(first) == pytest.approx(1 / 18, abs=0.01)
    few = made(2, ensemble=3)
    assert {len(list(few.sample())) for _ in range(50)} == {1, 2}


def test_nothing_synchronizes_with_a_full_memory() -> None:
    method = made(3, memory=3)
    given = batch()
    with torch.profiler.profile() as profile:
        losses = method.loss(given)
        method.begin_iteration(99)
        method.after_iteration()
    assert "loss_past" in losses
    assert [event.name for event in profile.events() if event.name in READS] == []


def test_bare_passes_hold_those_of_the_past_models() -> None:
    method = made(3)
    given = batch()
    counts: Counter[str] = Counter()
    for past in method.past:
        past.network.decode_head.register_forward_pre_hook(
            lambda module, inputs: counts.update({"images": len(inputs[0][0])})
        )
    seen = []
    for call in (method.loss, method.bare_passes):
        counts.clear()
        np.random.seed(2)
        call(given)
        seen.append(counts["images"])
    assert seen[0] == seen[1] > 0


@pytest.mark.parametrize("settings", [dict(memory=0), dict(ensemble=0)])
def test_an_empty_memory_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        build("PrevMatch", **settings)


def test_a_message_says_what_the_memory_takes() -> None:
    method = build("PrevMatch", memory=4)
    size = sum(value.numel() * value.element_size() for value in method.student.state_dict().values()) / 2**20
    assert any(f"up to 4 past models take {4 * size:.0f} MiB" in message for message in method.messages)
