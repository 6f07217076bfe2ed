"""The parts of U2PL against slow references written from the paper, for few and many classes, with gaps in the data."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
import torch

from sslseg.methods.u2pl import contrast, partition
from sslseg.methods.u2pl.contrast import Contrast
from sslseg.methods.u2pl.memory_bank import MemoryBank
from sslseg.methods.u2pl.partition import fitted_ranks

IGNORE = 255
COUNTS = [2, 3, 5, 19, 21]


def pixels(classes: int, number: int = 60) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return probabilities, labels without the last class (of more than two), and their valid mask."""
    torch.manual_seed(classes)
    present = max(classes - 1, 2)
    probabilities = (2 * torch.randn(number, classes)).softmax(1)
    labels = torch.randint(0, present, (number,))
    likely = torch.rand(number) < 0.5
    labels[likely] = probabilities.argmax(1)[likely].clamp_max(present - 1)
    labels[::7] = IGNORE
    return probabilities, labels, labels != IGNORE


def order(probabilities: torch.Tensor) -> list[list[int]]:
    """Return O, the rank of each class."""
    return [[sorted(row, reverse=True).index(value) for value in row] for row in probabilities.tolist()]


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.8, 0.873, 1.0])
def test_quantile_is_that_of_the_valid_values(fraction: float) -> None:
    torch.manual_seed(0)
    values, valid_mask = torch.rand(2, 7, 9), torch.rand(2, 7, 9) < 0.6
    expected = np.quantile(values[valid_mask].double().numpy(), fraction)
    assert partition.quantile(values, valid_mask, fraction).item() == pytest.approx(expected, abs=1e-6)
    assert partition.quantile(values, torch.zeros_like(valid_mask), fraction) == math.inf


@pytest.mark.parametrize("classes", COUNTS)
def test_probability_ranks_anchors_and_negatives_are_those_of_the_paper(classes: int) -> None:
    probabilities, labels, valid_mask = pixels(classes)
    chosen = torch.rand(len(labels)) < 0.4
    ranks = order(probabilities)
    for rank in (0, 1, 2, classes // 2, classes - 1, classes, 20):
        expected = [[value < rank for value in row] for row in ranks]
        assert partition.in_top_k(probabilities, rank).tolist() == expected
    low, high = fitted_ranks(3, 20, classes)
    assert low < high <= classes
    anchors = partition.anchor_classes(probabilities, labels, valid_mask, 0.3)
    own = partition.labeled_negatives(probabilities, labels, valid_mask, low)
    other = partition.unlabeled_negatives(probabilities, chosen, low, high)
    for j, label in enumerate(labels.tolist()):
        is_anchor = label != IGNORE and probabilities[j, label] > 0.3  # Eqs. (9), (10)
        assert anchors[j] == (label if is_anchor else classes)
        for c in range(classes):
            assert own[j, c] == (label != IGNORE and label != c and 0 <= ranks[j][c] < low)  # Eq. (14)
            assert other[j, c] == (chosen[j] and low <= ranks[j][c] < high)  # Eq. (15)
    assert own.any()
    assert other.any(), "with few classes, too, unreliable pixels are negatives"


def test_few_classes_shift_the_rank_thresholds() -> None:
    assert [fitted_ranks(3, 20, classes) for classes in COUNTS] == [(1, 2), (2, 3), (3, 5), (3, 19), (3, 20)]


@pytest.mark.parametrize("classes", COUNTS)
def test_centers_are_means_of_all_anchors(classes: int) -> None:
    probabilities, labels, valid_mask = pixels(classes)
    features = torch.randn(len(labels), 6)
    anchors = partition.anchor_classes(probabilities, labels, valid_mask, 0.3)
    sums, members = contrast.centers(features, anchors, classes)
    for c in range(classes):
        own = [feature for feature, anchor in zip(features, anchors, strict=True) if anchor == c]
        assert members[c] == len(own)
        if own:
            torch.testing.assert_close(sums[c] / members[c], sum(own) / len(own), rtol=1e-5, atol=1e-5)
    assert classes == 2 or members[-1] == 0


def test_anchors_are_sampled_from_the_candidates_of_their_class() -> None:
    torch.manual_seed(0)
    classes = torch.tensor([3, 0, 4, 0, 1, 4, 3, 0, 4])
    chosen, counts = contrast.sample_anchors(classes, 200, 4)
    assert counts.tolist() == [3, 1, 0, 2]
    for c, members in enumerate([{1, 3, 7}, {4}, None, {0, 6}]):
        if members is not None:
            assert set(chosen[c].tolist()) == members
    _, none = contrast.sample_anchors(torch.full((5,), 4), 3, 4)
    assert none.tolist() == [0] * 4


@pytest.mark.parametrize("classes", COUNTS)
def test_the_bank_holds_the_newest_keys_of_each_class_in_order(classes: int) -> None:
    torch.manual_seed(0)
    sizes = [5, *[3] * (classes - 1)]
    bank = MemoryBank(sizes, dim=2)
    queues: list[deque[tuple[float, ...]]] = [deque(maxlen=size) for size in sizes]
    for number, fraction in ((4, 0.3), (0, 0.0), (1, 1.0), (20, 0.5), (6, 0.4), (3, 0.0)):
        features, negatives = torch.randn(number, 2), torch.rand(number, classes) < fraction
        bank.push(features, negatives)
        for feature, row in zip(features.tolist(), negatives.tolist(), strict=True):
            for c, is_negative in enumerate(row):
                if is_negative:
                    queues[c].append(tuple(feature))
        for c, queue in enumerate(queues):
            assert bank.counts[c] == len(queue)
            assert [tuple(key) for key in bank.queue(c).tolist()] == list(queue)
    sampled = bank.sample(40, 2)
    assert sampled.shape == (classes, 40, 2, 2)
    for c, queue in enumerate(queues):
        assert {tuple(key) for key in sampled[c].flatten(0, 1).tolist()} == set(queue)
    assert bank.bytes == sum(sizes) * 2 * 4
    other = MemoryBank(sizes, dim=2)
    other.load_state_dict(bank.state_dict())
    other.push(features, negatives)
    bank.push(features, negatives)
    assert all(torch.equal(other.queue(c), bank.queue(c)) for c in range(classes))
    bank.clear()
    assert bank.counts.sum() == 0


def test_no_slot_is_written_twice_in_a_push(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it would be open which vector remains."""
    written: list[torch.Tensor] = []
    original = torch.Tensor.__setitem__

    def watched(self: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> None:
        written.append(slots)
        original(self, slots, values)

    bank = MemoryBank([5, 3], dim=2)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__setitem__", watched)
        bank.push(torch.randn(20, 2), torch.ones(20, 2, dtype=torch.bool))
    (slots,) = written
    assert len(slots.unique()) == len(slots) == 8


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("loss", ["infonce", "bce"])
@pytest.mark.parametrize("classes", COUNTS)
def test_the_loss_is_that_of_algorithm_1(monkeypatch: pytest.MonkeyPatch, classes: int, loss: str) -> None:
    """Anchors and negatives are taken in order instead of at random, so that a loop can repeat it."""

    def in_order(counts: torch.Tensor, *shape: int) -> torch.Tensor:
        indices = torch.arange(math.prod(shape)).reshape(shape).expand(len(counts), *shape)
        return indices % counts.reshape(-1, *[1] * len(shape)).clamp_min(1)

    for module in ("contrast", "memory_bank"):
        monkeypatch.setattr(f"sslseg.methods.u2pl.{module}.random_indices", in_order)
    m, n, tau, dim = 4, 6, 0.5, 8
    module = Contrast(
        classes,
        dim=dim,
        loss=loss,
        anchors=m,
        negatives=n,
        temperature=tau,
        queue_size=20,
        background_queue_size=30,
        use_memory_bank=True,
    )
    queues: list[deque[torch.Tensor]] = [deque(maxlen=30 if c == 0 else 20) for c in range(classes)]
    used = set()
    for iteration in range(3):
        probabilities, labels, valid_mask = pixels(classes, number=40 + iteration)
        anchors = partition.anchor_classes(probabilities, labels, valid_mask, 0.3)
        if iteration == 0:
            negative = torch.zeros(len(labels), classes, dtype=torch.bool)  # an empty bank
        else:
            negative = partition.labeled_negatives(probabilities, labels, valid_mask, fitted_ranks(3, 20, classes)[0])
        vectors = torch.nn.functional.normalize(torch.randn(len(labels), dim), dim=1)
        keys = torch.randn(len(labels), dim) * torch.rand(len(labels), 1).exp2() ** 4  # of very different lengths
        got = module(vectors, keys, anchors, negative)
        terms = []
        for c in range(classes):
            for key, row in zip(keys, negative, strict=True):
                if row[c]:
                    queues[c].append(key / key.norm())
            candidates = [j for j, anchor in enumerate(anchors.tolist()) if anchor == c]
            if not candidates or not queues[c]:
                continue
            used.add(c)
            center = sum(keys[j] for j in candidates) / len(candidates)
            total = 0.0
            slots = [module.bank.keys[int(module.bank.starts[c]) + i % len(queues[c])] for i in range(m * n)]
            assert all(any(torch.allclose(slot, key, atol=1e-6) for key in queues[c]) for slot in slots)
            for i in range(m):
                anchor = vectors[candidates[i % len(candidates)]]
                positive = math.exp(cosine(anchor, center) / tau)
                negatives = [math.exp(cosine(anchor, slots[i * n + j]) / tau) for j in range(n)]
                if loss == "infonce":
                    total -= math.log(positive / (positive + sum(negatives)))
                else:
                    total -= sum(math.log(positive / (positive + value)) for value in negatives) / n
            terms.append(total / m)
        expected = sum(terms) / len(terms) if terms else 0.0
        assert got.item() == pytest.approx(expected, abs=1e-5)
    assert used
    assert classes == 2 or classes - 1 not in used
