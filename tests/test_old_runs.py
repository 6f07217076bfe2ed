"""What version 0.1 wrote is still read: runs, checkpoints and configs under their old names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sslseg.artifacts.find import load_model
from sslseg.config.build import TrainOptions, build_config
from sslseg.config.files import load, loads
from sslseg.config.upgrade import upgrade_config
from sslseg.splits.split import Split
from tests.conftest import Sslseg


@pytest.fixture
def old(trained: Path, workspace: Path) -> Path:
    """A run as version 0.1 has written it."""
    run = workspace / "runs" / "supervised-toy-4"
    shutil.copytree(trained, run)
    record = json.loads((run / "run.json").read_text())
    record |= dict(version=1, iters=record.pop("iterations"))
    for which in ("last", "best"):
        record[which]["iter"] = record[which].pop("iteration")
    (run / "run.json").write_text(json.dumps(record))
    config = load(run / "config.py")
    config.schedule = dict(iters=config.schedule.iterations, warmup=0.05, power=0.9, validations=5)
    (run / "config.py").write_text(config.pretty_text)
    metrics = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(metrics.replace('"iteration"', '"step"'))
    for path in (run / "checkpoints").iterdir():
        state = torch.load(path, weights_only=True)
        meta = state["meta"]
        meta |= dict(version=1, iter=meta.pop("iteration"), best_iter=meta.pop("best_iteration"))
        meta["config"] = config.pretty_text
        torch.save(state, path)
    return run


@pytest.mark.slow
def test_every_command_reads_an_old_run(old: Path, sslseg: Sslseg) -> None:
    for arguments in (
        ("inspect", old),
        ("inspect", old / "checkpoints" / "last.pth"),
        ("eval", old, "--workers", "0"),
        ("pseudolabel", old, "--subset", "train", "--workers", "0"),
        ("export", old),
    ):
        done = sslseg(*arguments)
        assert done.code == 0, done.err
    record = json.loads(sslseg("inspect", old, "--json").out)
    assert (record["iterations"], record["last"]["iteration"]) == (80, 80)
    done = sslseg("refine", old, "--workers", "0", "--iterations", "2")
    assert done.code == 0, done.err


def test_a_refining_run_inherits_the_length_of_an_old_one(old: Path, toy_split: Split) -> None:
    base = load_model(old / "checkpoints" / "last.pth").config
    assert build_config(toy_split, TrainOptions(method="cutmix"), base=base).schedule.iterations == 80


def test_a_refining_run_inherits_the_rates_of_a_run_with_one_rate_for_all(old: Path, toy_split: Split) -> None:
    base = load_model(old / "checkpoints" / "last.pth").config
    assert "paramwise" in build_config(toy_split, TrainOptions(method="cutmix"), base=base)
    base.pop("paramwise")
    assert "paramwise" not in build_config(toy_split, TrainOptions(method="cutmix"), base=base)


def test_an_old_config_is_read_under_todays_names(
    tmp_path: Path, toy_split: Split, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "_base_ = ['sslseg::u2pl/default.py']\n"
        "schedule = dict(iters=24)\n"
        "method = dict(adjust=False, warmup_epochs=2, contrast=dict(remember=False))\n"
    )
    (tmp_path / "old.py").write_text("_base_ = ['./mine.py']\nmethod = dict(epochs=None)\n")
    config = build_config(toy_split, TrainOptions(config=str(tmp_path / "old.py")))
    assert config.schedule.iterations == 24
    assert (config.method.dynamic_alpha, config.method.warmup) == (False, "2 epochs")
    assert config.method.contrast.use_memory_bank is False
    message = capfd.readouterr().err
    for words in (
        "schedule.iters -> schedule.iterations",
        "method.adjust -> method.dynamic_alpha",
        "method.epochs is gone",
    ):
        assert words in " ".join(message.split())


def test_old_assignments_are_taken_and_named(toy_split: Split, capfd: pytest.CaptureFixture[str]) -> None:
    config = build_config(toy_split, TrainOptions(assignments={"schedule.iters": 7}))
    assert config.schedule.iterations == 7
    assert "--set schedule.iters is now schedule.iterations" in capfd.readouterr().err


def test_a_config_of_today_is_left_alone() -> None:
    text = "schedule = dict(iterations=5)\nmethod = dict(type='CutMix', rampup='3 epochs')\n"
    config = upgrade_config(loads(text))
    assert (config.schedule, config.method.rampup) == (dict(iterations=5), "3 epochs")
