"""Adaptive equalization: confidence bank, samples and weights against slow references; pasting by pixel."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sslseg.functional.mixing import boxes
from sslseg.methods.ael.equalizer import Equalizer

CLASSES, IGNORE = 4, 255
SETTINGS: dict[str, Any] = dict(momentum=0.9, gamma=2.0, cutmix=True, copy_paste=True, sampling=True, reweighting=True)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


def made(confidence: list[float] | None = None, **more: Any) -> Equalizer:
    equalizer = Equalizer(CLASSES, **SETTINGS | more)
    if confidence is not None:
        equalizer.confidence.copy_(torch.tensor(confidence))
        equalizer.observations.fill_(1000)
    return equalizer


def test_confidence_is_the_ema_of_the_true_class_s_probability() -> None:
    equalizer = made([0.1, 0.2, 0.3, 0.4])
    probabilities = torch.randn(2, CLASSES, 5, 6).softmax(1)
    labels = torch.randint(0, CLASSES - 1, (2, 5, 6))  # the last class is absent
    labels[0, 0] = IGNORE
    expected = []
    for c in range(CLASSES):
        own = [
            float(probabilities[n, c, y, x])
            for n in range(2)
            for y in range(5)
            for x in range(6)
            if labels[n, y, x] == c
        ]
        before = float(equalizer.confidence[c])
        expected.append(0.9 * before + 0.1 * sum(own) / len(own) if own else before)
    equalizer.observe(probabilities, labels)
    assert equalizer.confidence.tolist() == pytest.approx(expected, abs=1e-6)
    assert expected[3] == pytest.approx(0.4)


def test_the_confidence_is_unbiased_from_the_first_observation() -> None:
    """A class's mean until the EMA decay is reached, however late it is first seen."""
    equalizer = made()
    observed: list[list[float]] = [[] for _ in range(CLASSES)]
    for iteration in range(60):
        probabilities = torch.randn(2, CLASSES, 5, 6).softmax(1)
        labels = torch.randint(0, CLASSES - 1, (2, 5, 6))
        if iteration < 7:
            labels[labels == 1] = 0
        equalizer.observe(probabilities, labels)
        for c in set(labels.flatten().tolist()):
            observed[c].append(float(probabilities[:, c][labels == c].mean()))
        for c in range(CLASSES):
            seen = observed[c]
            if len(seen) <= 10:  # 1 - 1 / k is at most the decay
                assert equalizer.confidence[c] == pytest.approx(sum(seen) / max(len(seen), 1), abs=1e-6)
            else:
                expected = sum(seen[:10]) / 10
                for value in seen[10:]:
                    expected = 0.9 * expected + 0.1 * value
                assert equalizer.confidence[c] == pytest.approx(expected, abs=1e-6)
    assert equalizer.observations.tolist() == [60, 53, 60, 0]


def test_a_bank_of_version_0_1_starts_again() -> None:
    old = dict(confidence=torch.tensor([0.1, 0.2, 0.3, 0.4]))
    equalizer = made()
    equalizer.load_state_dict(old)
    equalizer.observe(torch.full((1, CLASSES, 2, 2), 0.25), torch.zeros(1, 2, 2, dtype=torch.long))
    assert equalizer.confidence.tolist() == pytest.approx([0.25, 0.2, 0.3, 0.4])


def test_under_performing_classes_are_sampled_and_learned_more_often() -> None:
    equalizer = made([0.9, 0.5, 0.1, 0.5])
    assert equalizer.rates().tolist() == pytest.approx([0.1 / 0.9, 0.5 / 0.9, 1.0, 0.5 / 0.9])
    labels = torch.zeros(3, 8, 8, dtype=torch.long)
    labels[1, :4] = 2
    labels[2] = IGNORE
    sampled, sources = equalizer.sample(labels, 4000)
    odds = torch.tensor([0.1, 0.9]).softmax(0)
    assert set(sampled.tolist()) == {0, 2}  # 1 and 3 are absent
    assert float((sampled == 2).float().mean()) == pytest.approx(float(odds[1]), abs=0.03)
    assert set(sources[sampled == 2].tolist()) == {1}
    assert set(sources[sampled == 0].tolist()) == {0, 1}


def test_a_batch_without_labels_changes_nothing() -> None:
    equalizer = made([0.9, 0.5, 0.1, 0.5])
    labels = torch.full((2, 8, 8), IGNORE)
    images = torch.randn(2, 3, 8, 8)
    pasted, kept = equalizer.paste(images, labels)
    assert torch.equal(pasted, images)
    assert torch.equal(kept, labels)
    before = equalizer.confidence.clone()
    equalizer.observe(torch.randn(2, CLASSES, 8, 8).softmax(1), labels)
    assert torch.equal(equalizer.confidence, before)


def test_copy_paste_moves_whole_classes_with_their_pixels() -> None:
    equalizer = made([0.9, 0.9, 0.1, 0.9])
    labels = torch.randint(0, CLASSES, (6, 9, 9))
    images = labels[:, None].repeat(1, 3, 1, 1) + 10.0 * torch.arange(6).reshape(6, 1, 1, 1)  # encode class and image
    pasted, moved = equalizer.paste(images, labels)
    changed = pasted[:, 0] != images[:, 0]
    assert changed.any()
    assert not changed.flatten(1).any(dim=1).all()  # half the images get something
    assert torch.equal(moved, pasted[:, 0].long() % 10)
    for n in range(6):
        if changed[n].any():
            (source,) = {int(value) // 10 for value in pasted[n, 0][changed[n]]}
            classes = set(moved[n][changed[n]].tolist())
            for c in classes:
                assert changed[n][labels[source] == c].all()
    off = made(copy_paste=False)
    assert off.paste(images, labels)[0] is images


def test_boxes_are_the_smallest_around_a_region() -> None:
    regions = torch.rand(5, 7, 8) < 0.06
    regions[4] = False
    found = boxes(regions)[:, 0]
    for n in range(5):
        expected = torch.zeros(7, 8, dtype=torch.bool)
        places = regions[n].nonzero().tolist()
        if places:
            rows, columns = zip(*places, strict=True)
            expected[min(rows) : max(rows) + 1, min(columns) : max(columns) + 1] = True
        assert torch.equal(found[n], expected)


def test_adaptive_cutmix_pastes_the_box_around_a_class() -> None:
    equalizer = made([0.9, 0.9, 0.0, 0.9])
    labels = torch.zeros(4, 8, 8, dtype=torch.long)
    labels[1, 2:5, 3:6] = 2
    targets = torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1).float()
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 8, 8)
    valid_mask = torch.ones(4, 8, 8, dtype=torch.bool)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:5, 3:6] = True
    found = 0
    for _ in range(20):
        mixed, mixed_targets, _ = equalizer.mix(images, targets, valid_mask)
        for n in range(4):
            pasted = mixed[n, 0] != n
            if pasted.any() and not pasted.all():  # the class that fills whole images was not sampled
                found += 1
                assert torch.equal(pasted, inside)
                assert (mixed[n, 0][inside] == 1).all()
                assert (mixed_targets[n].argmax(0)[inside] == 2).all()
    assert found


def test_weights_are_a_power_of_the_confidence_where_a_pixel_is_sampled() -> None:
    confidence = torch.rand(2, 30, 30)
    predicted = torch.randint(0, CLASSES, (2, 30, 30))
    bank = [0.9, 0.5, 0.1, 0.5]
    torch.testing.assert_close(made(sampling=False).weights(predicted, confidence), confidence**2)
    weights = made(bank).weights(predicted, confidence)
    kept = weights > 0
    torch.testing.assert_close(weights[kept], (confidence**2)[kept])
    for c, rate in enumerate([0.1 / 0.9, 0.5 / 0.9, 1.0, 0.5 / 0.9]):
        assert float(kept[predicted == c].float().mean()) == pytest.approx(rate, abs=0.07)
    assert made(sampling=False, reweighting=False).weights(predicted, confidence).eq(1).all()
