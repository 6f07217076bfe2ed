"""Accepted pseudo-labels by class in the history, and warnings of terms and classes that teach nothing any more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sslseg.engine.build import hidden_samples
from sslseg.engine.silence import Silence
from sslseg.errors import UserError
from sslseg.evaluation.pseudo_labels import PseudoLabelMetric
from sslseg.methods.acceptance import STRIDE, Acceptance
from sslseg.splits.split import Split
from sslseg.train import train
from tests.conftest import OPTIONS
from tests.methods.conftest import CLASSES, batch_of, build


def test_fractions_equal_the_slow_ones() -> None:
    acceptance = Acceptance(5)
    assert acceptance.take() == {}
    seen: list[tuple[int, bool]] = []
    labeled: list[int] = []
    for _ in range(3):
        classes = torch.randint(0, 4, (2, 12, 16))  # the last class does not occur
        accepted, valid = torch.rand(2, 12, 16) > 0.4, torch.rand(2, 12, 16) > 0.2
        labels = torch.randint(0, 3, (2, 12, 16)).masked_fill(torch.rand(2, 12, 16) > 0.7, 255)
        acceptance.add(classes, accepted, valid)
        acceptance.add_labels(labels)
        for n in range(2):
            for y in range(0, 12, STRIDE):
                for x in range(0, 16, STRIDE):
                    if valid[n, y, x]:
                        seen.append((int(classes[n, y, x]), bool(accepted[n, y, x])))
                    if labels[n, y, x] != 255:
                        labeled.append(int(labels[n, y, x]))
    taken = acceptance.take()
    for c in range(5):
        own = [accepted for found, accepted in seen if found == c]
        assert taken["predicted"][c] == pytest.approx(len(own) / len(seen), abs=1e-5)
        assert taken["accepted"][c] == (pytest.approx(sum(own) / len(own), abs=1e-5) if own else None)
        assert taken["labels"][c] == pytest.approx(labeled.count(c) / len(labeled), abs=1e-5)
    assert acceptance.take() == {}, "a record begins anew"


@pytest.mark.parametrize("name", ["CutMix", "FixMatch", "UniMatch", "UniMatchV2", "U2PL"])
def test_methods_with_pseudo_labels_record_them(name: str) -> None:
    method = build(name)
    method.begin_iteration(90)
    method.loss(batch_of(method.views))
    record = method.log_values()["pseudo_labels"]
    assert {key: len(values) for key, values in record.items()} == dict.fromkeys(
        ("predicted", "accepted", "labels"), CLASSES
    )
    assert sum(record["predicted"]) == pytest.approx(1.0, abs=1e-3)
    assert sum(record["labels"]) == pytest.approx(1.0, abs=1e-3)
    json.dumps(record)


def test_the_history_of_a_training_holds_them(tmp_path: Path, toy_split: Split) -> None:
    run = train(toy_split, tmp_path / "run", replace(OPTIONS, method="fixmatch", iterations=3))
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(len(line["pseudo_labels"]["accepted"]) == 7 for line in lines if "loss" in line)


def said(
    silence: Silence, records: list[tuple[dict, dict]], *, epoch: int, interval: int = 10
) -> list[tuple[int, str]]:
    found = []
    for number, (values, taken) in enumerate(records, start=1):
        more = dict(pseudo_labels=taken) if taken else {}
        iteration = silence.first + number * interval
        last = number == len(records)
        found += [(iteration, text) for text in silence.messages(iteration, values, more, epoch=epoch, last=last)]
    return found


def losses(*values: float) -> list[tuple[dict, dict]]:
    return [(dict(loss=1.0, loss_unlabeled=value, confident=0.0), {}) for value in values]


def test_a_term_that_becomes_0_is_named_once_after_an_epoch() -> None:
    found = said(Silence(()), losses(0.5, 0.5, 0, 0, 0, 0, 0, 0), epoch=30)
    assert [iteration for iteration, _ in found] == [50]
    assert "loss_unlabeled is exactly 0 since iteration 20" in found[0][1]


def test_a_warm_up_of_an_epoch_and_single_zeros_are_not_reported() -> None:
    assert said(Silence(()), losses(0, 0, 0, 0.1, 0, 0, 0.2, 0), epoch=30) == []
    assert said(Silence(()), losses(0, 0, 0, 0, 0, 0, 0.2, 0.2), epoch=30)[0][0] == 60


def test_a_training_that_is_shorter_than_an_epoch_is_judged_at_its_end() -> None:
    assert [iteration for iteration, _ in said(Silence(()), losses(0, 0, 0), epoch=300)] == [30]
    assert said(Silence(()), losses(0, 0.1, 0), epoch=300) == []


def test_a_resumed_run_counts_from_where_it_goes_on() -> None:
    silence = Silence(())
    silence.first = 500
    found = said(silence, losses(0, 0, 0, 0), epoch=30)
    assert [iteration for iteration, _ in found] == [530]
    assert "since iteration 500" in found[0][1]


def classes(*accepted: list[Any], labels: tuple[float, ...] = (0.5, 0.4, 0.0)) -> list[tuple[dict, dict]]:
    return [(dict(loss=1.0), dict(predicted=[0.5, 0.3, 0.2], accepted=row, labels=list(labels))) for row in accepted]


def test_a_class_that_dies_out_is_named_once_and_one_that_is_not_labeled_never() -> None:
    rows = [[0.9, 0.5, 0.0], *[[0.9, 0.0, 0.0]] * 3, *[[0.9, None, None]] * 3]
    found = said(Silence(("sky", "tree", "car")), classes(*rows), epoch=30)
    assert [iteration for iteration, _ in found] == [40]
    assert "no pseudo-label of 'tree' was accepted since iteration 10" in found[0][1]


def test_a_class_that_comes_back_within_the_epoch_is_not_reported() -> None:
    rows = [[0.9, 0.5, 0.0], [0.9, 0.0, 0.0], [0.9, None, 0.0], [0.9, 0.1, 0.0], [0.9, 0.0, 0.0]]
    assert said(Silence(("sky", "tree", "car")), classes(*rows), epoch=30) == []


def test_a_training_says_what_is_never_accepted(
    tmp_path: Path, toy_split: Split, capfd: pytest.CaptureFixture[str]
) -> None:
    options = replace(OPTIONS, method="fixmatch", iterations=4, assignments={"method.threshold": 1.1})
    train(toy_split, tmp_path / "run", options)
    shown = capfd.readouterr().err
    assert "loss_unlabeled is exactly 0 since iteration 0" in shown
    assert "no pseudo-label of 'background', " in shown
    assert shown.count("no pseudo-label") == 1, "one line for all classes"


def test_hidden_labels_judge_what_is_accepted() -> None:
    metric = PseudoLabelMetric(4, ignore_index=255)
    seen: list[tuple[int, bool, bool]] = []
    for _ in range(3):
        mask, accepted = torch.randint(0, 3, (6, 7)), torch.rand(6, 7) > 0.5
        label = torch.where(torch.rand(6, 7) > 0.4, mask, torch.randint(0, 4, (6, 7)))
        label[torch.rand(6, 7) < 0.2] = 255
        metric.add(mask, accepted, label)
        for y in range(6):
            for x in range(7):
                if label[y, x] != 255:
                    seen.append((int(mask[y, x]), bool(accepted[y, x]), bool(mask[y, x] == label[y, x])))
    found = metric.finish(3)
    taken = [correct for _, accepted, correct in seen if accepted]
    assert found["images"] == 3
    assert found["coverage"] == pytest.approx(len(taken) / len(seen), abs=1e-5)
    assert found["precision"] == pytest.approx(sum(taken) / len(taken), abs=1e-5)
    for c in range(4):
        own = [(accepted, correct) for predicted, accepted, correct in seen if predicted == c]
        right = [correct for accepted, correct in own if accepted]
        assert found["coverage_by_class"][c] == (pytest.approx(len(right) / len(own), abs=1e-5) if own else None)
        assert found["precision_by_class"][c] == (pytest.approx(sum(right) / len(right), abs=1e-5) if right else None)


def test_hidden_labels_are_in_the_history_and_change_no_weight(tmp_path: Path, toy_split: Split) -> None:
    options = replace(OPTIONS, method="fixmatch", iterations=4, val_interval=2)
    plain = train(toy_split, tmp_path / "plain", options)
    judged = train(toy_split, tmp_path / "judged", replace(options, assignments={"data.hidden": 5}))
    first, second = (
        torch.load(run.checkpoints / "last.pth", weights_only=True)["state_dict"] for run in (plain, judged)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = [json.loads(line) for line in (judged.folder / "metrics.jsonl").read_text().splitlines()]
    scores = [line["val"]["pseudo_labels"] for line in lines if "val" in line]
    assert [score["images"] for score in scores] == [5, 5]
    assert all(0 <= score["coverage"] <= 1 and len(score["precision_by_class"]) == 7 for score in scores)


def test_hidden_images_are_evenly_spaced_and_have_a_mask(toy_split: Split) -> None:
    known = toy_split.samples("unlabeled")
    assert hidden_samples(toy_split, 0) == []
    assert hidden_samples(toy_split, 3) == [known[0], known[round((len(known) - 1) / 2)], known[-1]]
    assert hidden_samples(toy_split, 1000) == known
    bare = SimpleNamespace(samples=lambda subset: [replace(sample, mask=None) for sample in known])
    with pytest.raises(UserError, match=r"data\.hidden"):
        hidden_samples(bare, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "reached"), [("CutMix", False), ("FixMatch", True), ("UniMatch", True)])
def test_a_method_accepts_what_its_loss_accepts(name: str, reached: bool) -> None:
    probabilities = torch.tensor([[0.5, 0.75, 1.0], [0.5, 0.25, 0.0]])[None, :, None]
    assert build(name, threshold=0.75).accepts(probabilities).tolist() == [[[False, reached, True]]]
    assert build("Supervised").accepts(probabilities).all()
