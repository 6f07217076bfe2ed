"""EMA decays and durations in epochs follow the length of a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sslseg.artifacts.find import load_model
from sslseg.config.build import TrainOptions, build_config
from sslseg.config.lengths import rescaling_messages
from sslseg.errors import UserError
from sslseg.functional.schedule import duration, rescaled_decay, rescaled_duration
from sslseg.methods.ema import EMA
from sslseg.splits.split import Split
from sslseg.train import train

OPTIONS = TrainOptions(
    method="cutmix", model="deeplabv3plus_r18s", batch_size=2, crop=(48, 48), workers=0, pretrained="none"
)
STATED = 0.99  # of every default, for 2,000 iterations


def built(split: Split, **options: Any) -> Any:
    return build_config(split, replace(OPTIONS, **options))


def recipe(folder: Path, **sections: dict[str, Any]) -> str:
    """Write a config that changes cutmix/default."""
    lines = ["_base_ = ['sslseg::cutmix/default.py']", *(f"{name} = {value!r}" for name, value in sections.items())]
    (folder / "recipe.py").write_text("\n".join(lines))
    return str(folder / "recipe.py")


def slow_ema(iterations: int, decay: float, since: float) -> float:
    """Return the EMA of a value that is 0, and 1 from the fraction ``since`` of training on: the weight of that time."""
    value = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(value.weight)
    ema = EMA(value, [])
    for iteration in range(iterations):
        nn.init.constant_(value.weight, float(iteration >= since * iterations))
        ema.follow(value, iteration=iteration, decay=decay)
    return float(ema.network.weight)


@pytest.mark.parametrize("since", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("iterations", [40, 1600])
def test_the_same_fraction_of_training_has_the_same_weight(iterations: int, since: float) -> None:
    decay = 0.98
    expected = slow_ema(400, decay, since)
    assert 0.3 < expected < 0.99
    assert slow_ema(iterations, rescaled_decay(decay, 400 / iterations), since) == pytest.approx(expected, abs=1e-4)
    assert abs(slow_ema(iterations, decay, since) - expected) > 0.01


def test_a_decay_follows_the_length_and_says_so(toy_split: Split) -> None:
    config = built(toy_split, iterations=1000)
    assert config.method.decay == pytest.approx(0.9801)
    assert rescaling_messages(config) == [
        "method.decay 0.99 -> 0.9801: stated for 2,000 iterations, in this run of 1,000 the same fraction of training"
        " (--set method.decay=... sets it)"
    ]
    as_stated = built(toy_split)
    assert as_stated.schedule.iterations == 2000
    assert as_stated.method.decay == STATED
    assert rescaling_messages(as_stated) == []
    assert built(toy_split, epochs=3).method.decay == pytest.approx(
        STATED ** (2000 / built(toy_split, epochs=3).schedule.iterations)
    )
    for key in ("schedule.iterations", "schedule.epochs"):
        assert built(toy_split, assignments={"schedule.iterations": None, key: 7}).method.decay < STATED


@pytest.mark.parametrize("decay", [0.0, 0.95, 1.0])
def test_a_decay_that_the_user_sets_is_taken_as_it_is(toy_split: Split, decay: float) -> None:
    config = built(toy_split, iterations=1000, assignments={"method.decay": decay})
    assert config.method.decay == decay
    assert rescaling_messages(config) == []


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        ({}, 0.999**2),
        ({"method.equalizer.gamma": 1.0}, 0.999**2),
        ({"method.equalizer.momentum": 0.999}, 0.999),
        ({"method.equalizer": dict(gamma=1.0)}, 0.999),
    ],
)
def test_settings_within_settings_follow_too(toy_split: Split, assignments: dict[str, Any], expected: float) -> None:
    config = built(toy_split, method="ael", iterations=1000, assignments=assignments)
    assert config.method.equalizer.momentum == pytest.approx(expected)
    assert config.method.decay == pytest.approx(0.9801)


def test_durations_in_epochs_stay_the_same_fraction(toy_split: Split, tmp_path: Path) -> None:
    name = recipe(tmp_path, schedule=dict(iterations=None, epochs=30), method=dict(rampup="3 epochs"))
    stated, short = built(toy_split, config=name), built(toy_split, config=name, epochs=10)
    assert (stated.method.rampup, short.method.rampup) == ("3 epochs", "1 epochs")
    for config in (stated, short, built(toy_split, config=name, iterations=7)):
        epochs = duration(config.method.rampup, name="rampup")
        fraction = epochs * config.schedule.iterations_per_epoch / config.schedule.iterations
        assert fraction == pytest.approx(0.1)
    given = built(toy_split, config=name, epochs=10, assignments={"method.rampup": "3 epochs"})
    assert given.method.rampup == "3 epochs"
    assert built(toy_split, config=name, epochs=10, assignments={"method.rampup": 0.25}).method.rampup == 0.25


def test_lengths_are_those_of_the_config_or_those_that_it_states(toy_split: Split, tmp_path: Path) -> None:
    assert built(toy_split, config=recipe(tmp_path, schedule=dict(iterations=50))).method.decay == STATED
    stated = recipe(tmp_path, schedule=dict(iterations=50, stated_for=100))
    assert built(toy_split, config=stated).method.decay == pytest.approx(0.9801)
    assert built(toy_split, assignments={"schedule.stated_for": 4000}).method.decay == pytest.approx(0.9801)
    with pytest.raises(UserError, match="stated_for"):
        built(toy_split, config=recipe(tmp_path, schedule=dict(stated_for="ever")))


def test_the_config_of_a_run_is_stated_for_its_own_length(toy_split: Split, tmp_path: Path) -> None:
    config = built(toy_split, iterations=1000)
    (tmp_path / "config.py").write_text(config.pretty_text)
    again = built(toy_split, config=str(tmp_path / "config.py"))
    assert again.method.decay == config.method.decay
    assert rescaling_messages(again) == []
    assert built(toy_split, config=str(tmp_path / "config.py"), iterations=500).method.decay == pytest.approx(STATED**4)


def test_a_refining_run_is_as_long_as_the_one_before_and_its_decays_follow(trained: Path, toy_split: Split) -> None:
    base = load_model(trained / "checkpoints" / "last.pth").config
    config = build_config(toy_split, TrainOptions(method="three-stage"), base=base)
    assert config.schedule.iterations == 80
    ((start, decay),) = config.method.decays
    assert (start, decay) == (0.0, pytest.approx(STATED**25))


def test_absurd_lengths_and_decays() -> None:
    for decay in (0.0, 1.0, -1.0, 1.5):
        assert rescaled_decay(decay, 2000.0) == rescaled_decay(decay, 1e-3) == decay
    assert 0.0 <= rescaled_decay(0.5, 1e9) < 1e-300
    assert 0.999 < rescaled_decay(0.99, 1e-6) < 1.0
    assert duration(str(rescaled_duration("1 epoch", 1e7)), name="rampup") == pytest.approx(1e-7)
    assert rescaled_duration(0.5, 2.0) == 0.5


def test_training_uses_the_decay_of_its_length_and_logs_it_once(toy_split: Split, tmp_path: Path) -> None:
    run = train(toy_split, tmp_path / "run", replace(OPTIONS, iterations=4, assignments={"schedule.stated_for": 2}))
    log = (run.folder / "train.log").read_text()
    assert log.count("method.decay 0.99 -> 0.994987: stated for 2 iterations, in this run of 4") == 1
    from sslseg.config.files import load

    assert load(run.config_path).method.decay == pytest.approx(STATED**0.5)
    state = torch.load(run.checkpoints / "last.pth", weights_only=True)
    assert "0.994987" in state["meta"]["config"]
