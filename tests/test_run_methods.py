"""The order in which ``tools/run_methods.py`` runs the commands of a benchmark, with commands that do nothing."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sslseg.artifacts.run import Run
from sslseg.config.auto import recommendation

TOOLS = Path(__file__).resolve().parent.parent / "tools"


class Fake:
    """Stands in for ``sslseg``: notes each command, marks its run as finished, and fails where ``failing`` says so."""

    def __init__(self, module: ModuleType, folder: Path) -> None:
        self.module, self.folder = module, folder
        self.commands: list[list[str]] = []
        self.failing = ""
        self.running: list[str] = []
        self.together: set[frozenset[str]] = set()
        self.lock = threading.Lock()

    def run(self, chain: Any, *arguments: str) -> None:
        text = " ".join(arguments)
        with self.lock:
            self.commands.append(list(arguments))
            self.running.append(text)
            self.together.add(frozenset(self.running))
        time.sleep(0.01)
        with self.lock:
            self.running.remove(text)
        if self.failing and self.failing in text:
            raise self.module.CommandError(text)
        if arguments[0] in ("train", "refine"):
            run = Run(self.folder / arguments[arguments.index("--run-dir") + 1])
            run.folder.mkdir(parents=True, exist_ok=True)
            run.write(dict(status="finished"))

    def trained(self) -> list[str]:
        """Return the names of the runs that were trained, in order."""
        return [
            words[words.index("--run-dir") + 1].removeprefix("runs/") for words in self.commands if "--run-dir" in words
        ]

    def words(self, run: str) -> list[str]:
        """Return the command that trained a run."""
        return next(words for words in self.commands if f"runs/{run}" in words and "--run-dir" in words)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.syspath_prepend(str(TOOLS))
    import run_methods

    made = Fake(run_methods, tmp_path)
    monkeypatch.setattr(run_methods.Chain, "run", lambda chain, *arguments: made.run(chain, *arguments))
    return made


def main(fake: Fake, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["run_methods.py", str(fake.folder), *arguments])
    fake.module.main()


def test_a_seed_is_finished_before_the_next_and_its_ends_follow_its_baseline(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(fake, monkeypatch, "--seeds", "0", "1", "--methods", "cutmix", "three-stage", "supervised", "--ends")
    of_seed = [
        "supervised",
        "supervised-all",
        "supervised-double",
        "cutmix",
        "three-stage-stage2",
        "three-stage-stage3",
    ]
    assert fake.trained() == [f"{name}-seed{seed}" for seed in (0, 1) for name in of_seed]
    texts = [" ".join(words) for words in fake.commands]
    assert len(texts) == len(set(texts)), "a command that two methods share is run once"
    assert [words[0] for words in fake.commands[:2]] == ["split", "split"]
    assert fake.words("supervised-all-seed1")[2] == "splits/all-seed1"
    assert fake.words("supervised-double-seed1")[-2:] == ["--set", "data.batch_size=16"]
    refined = fake.words("three-stage-stage2-seed0")
    assert refined[refined.index("--checkpoint") + 1] == "last"


def test_methods_run_side_by_side_and_what_they_share_is_run_once(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("supervised", "cutmix", "three-stage", "self-training", "mean-teacher")
    main(fake, monkeypatch, "--seeds", "0", "1", "--methods", *names, "--ends", "--jobs", "2")
    assert len(fake.trained()) == len(set(fake.trained())) == 2 * 8
    stores = [words[words.index("--out") + 1] for words in fake.commands if words[0] == "pseudolabel"]
    assert len(stores) == len(set(stores))
    assert max(map(len, fake.together)) == 2
    # Whoever learns from a store waits for it.
    texts = [" ".join(words) for words in fake.commands]
    for seed in (0, 1):
        made = next(i for i, text in enumerate(texts) if text.startswith(f"pseudolabel runs/supervised-seed{seed}"))
        assert made < next(i for i, text in enumerate(texts) if text.startswith(f"refine runs/supervised-seed{seed}"))
        shared = {f"runs/supervised-seed{seed}"}
        for group in fake.together:
            if any(text.startswith("pseudolabel") and shared & set(text.split()) for text in group):
                assert not any(text.startswith("refine") and shared & set(text.split()) for text in group)


def test_a_failure_stops_its_own_method_and_is_printed_at_the_end(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.failing = "train --split splits/seed0 --run-dir runs/supervised-seed0"
    names = ("supervised", "cutmix", "three-stage")
    with pytest.raises(SystemExit) as ended:
        main(fake, monkeypatch, "--seeds", "0", "1", "--methods", *names)
    message = str(ended.value)
    assert [line.partition(":")[0] for line in message.splitlines()[1:]] == [
        "seed 0, supervised",
        "seed 0, three-stage",
    ]
    others = [
        "cutmix-seed0",
        "supervised-seed1",
        "cutmix-seed1",
        "three-stage-stage2-seed1",
        "three-stage-stage3-seed1",
    ]
    assert fake.trained() == ["supervised-seed0", *others]


def test_options_of_one_stage_leave_the_stages_before_it_as_they_are(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table V of three-stage self-training varies stage 3 alone."""
    common = ("--seeds", "0", "--methods", "three-stage")
    change = ("--", "--set", "method.pseudo_weight=0")
    with pytest.raises(SystemExit, match="runs/supervised-seed0 is not there"):
        main(fake, monkeypatch, *common, "--tag", "no-t2", "--stage", "3", *change)
    main(fake, monkeypatch, *common)
    fake.commands.clear()
    main(fake, monkeypatch, *common, "--tag", "no-t2", "--stage", "3", *change)
    assert fake.trained() == ["three-stage-stage3-no-t2-seed0"]
    assert fake.words("three-stage-stage3-no-t2-seed0")[1] == "runs/three-stage-stage2-seed0"
    assert "method.pseudo_weight=0" in fake.words("three-stage-stage3-no-t2-seed0")
    fake.commands.clear()
    main(fake, monkeypatch, *common, "--tag", "tilde", "--stage", "2", "--", "--set", "method.branch=g-tilde")
    assert fake.trained() == ["three-stage-stage2-tilde-seed0", "three-stage-stage3-tilde-seed0"]
    assert fake.words("three-stage-stage3-tilde-seed0")[1] == "runs/three-stage-stage2-tilde-seed0"
    given = ["method.branch=g-tilde" in fake.words(run) for run in fake.trained()]
    assert given == [True, False]
    fake.commands.clear()
    main(fake, monkeypatch, *common, "--tag", "no-ema", "--stage", "2", "3", "--", "--set", "method.decays=[]")
    assert all("method.decays=[]" in fake.words(run) for run in fake.trained())


def test_options_without_a_stage_go_to_every_training(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--tag", "slim", "--", "--model", "deeplabv3plus_r18s")
    main(fake, monkeypatch, "--seeds", "0", "--methods", "three-stage", "--ends", *options)
    names = ("supervised-all", "supervised-double", "supervised", "three-stage-stage2", "three-stage-stage3")
    assert fake.trained() == [f"{name}-slim-seed0" for name in names]
    assert all("deeplabv3plus_r18s" in fake.words(run) for run in fake.trained())
    with pytest.raises(SystemExit):
        main(fake, monkeypatch, "--seeds", "0", "--methods", "three-stage", "--stage", "3")


def test_auto_is_run_once_under_the_name_of_what_it_stands_for(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name = recommendation().recommended
    main(fake, monkeypatch, "--seeds", "0", "--methods", "supervised", "auto", name)
    assert fake.trained() == ["supervised-seed0", f"{name}-seed0"]
    assert f"auto: {name}" in capfd.readouterr().err
