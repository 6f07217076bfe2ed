"""``--method auto``, the default: what it stands for, where it is said, and that a resumed run keeps it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sslseg.artifacts.run import Run
from sslseg.catalog import find_method
from sslseg.config.auto import choose, recommendation, settle
from sslseg.config.build import TrainOptions, build_config
from sslseg.config.files import load, load_method
from sslseg.data.description import DatasetDescription
from sslseg.plugins import method_names
from sslseg.split import SplitOptions, make_split
from sslseg.splits.split import Split
from sslseg.train import train
from tests.conftest import OPTIONS, SHORT, Sslseg, program

CHECKOUT = Path(__file__).resolve().parent.parent
NOW = recommendation()
OTHER = next(name for name in ("mean-teacher", "cutmix") if name != NOW.recommended)
FEW = ("--iterations", "1", "--val-interval", "9")


@pytest.fixture
def recommend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``OTHER`` be the recommended method, as another version of the program may have it."""
    folder = tmp_path / "newer"
    folder.mkdir()
    text = (CHECKOUT / "configs" / "auto.py").read_text().replace(f"'{NOW.recommended}'", f"'{OTHER}'")
    (folder / "auto.py").write_text(text)
    monkeypatch.setattr("sslseg.config.auto.own_configs", lambda: folder)


def type_of(name: str) -> str:
    return load_method(name).method.type


def edit(run: Path, *dropped: str, **values: object) -> None:
    record = json.loads((run / "run.json").read_text())
    kept = {key: value for key, value in record.items() if key not in dropped}
    (run / "run.json").write_text(json.dumps(kept | values))


def said(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("method auto: ")]


def test_what_is_recommended_can_be_trained_and_reads_what_it_should() -> None:
    recommended, plain = find_method(NOW.recommended).cls, find_method(NOW.without_unlabeled).cls
    assert not recommended.needs_pseudo_masks
    assert not plain.needs_pseudo_masks
    assert {"unlabeled", "train"} & recommended.views.keys()
    assert plain.views.keys() == {"labeled"}


@pytest.mark.parametrize(
    ("labeled", "expected", "why"),
    [
        (4, NOW.recommended, "12 here"),
        (14, NOW.recommended, "2 here"),
        (15, NOW.without_unlabeled, "only 1 unlabeled"),
        (16, NOW.without_unlabeled, "no unlabeled images"),
    ],
)
def test_the_split_chooses(toy: DatasetDescription, labeled: int, expected: str, why: str) -> None:
    split = make_split(toy, SplitOptions(count=labeled))
    name, reason = choose(split)
    assert name == expected
    assert why in reason
    config = build_config(split, TrainOptions())
    assert config.to_dict() == build_config(split, TrainOptions(method=expected)).to_dict()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(batch_size=1), 2),
        (dict(assignments={"data.batch_size": 1}), 2),
        (dict(batch_size=2), None),
        (dict(batch_size=1, unlabeled_batch_size=1), 1),
        (dict(batch_size=1, unlabeled_batch_size=5), 5),
        (dict(), None),
    ],
)
def test_a_batch_holds_what_the_recommended_method_mixes_unless_the_user_says_how_many(
    toy_split: Split, changes: dict, expected: int | None
) -> None:
    options, reason = settle(replace(TrainOptions(), **changes), toy_split)
    assert options.unlabeled_batch_size == expected
    assert ("with 2 unlabeled images per iteration" in reason) == (expected == 2)
    own = TrainOptions(batch_size=1, assignments={"data.unlabeled_batch_size": 1})
    assert build_config(toy_split, own).data.unlabeled_batch_size == 1


def test_the_default_is_said_in_one_line_and_recorded(workspace: Path, sslseg: Sslseg) -> None:
    done = sslseg("train", *SHORT, *FEW, "--batch-size", "1", "--json")
    (line,) = said(done.err)
    assert line.startswith(f"method auto: {NOW.recommended}, recommended where there are unlabeled images (12 here)")
    assert "--method NAME chooses another" in line
    assert len(line) < 250
    record = json.loads(done.out)
    assert record["path"] == f"runs/{NOW.recommended}-toy-4"
    assert (record["method"], record["auto"]) == (type_of(NOW.recommended), NOW.recommended)
    assert Run(Path(record["path"])).read()["auto"] == NOW.recommended
    assert load(Path(record["path"]) / "config.py").data.unlabeled_batch_size == 2
    assert sslseg("train", *SHORT, *FEW, "--batch-size", "1", "--resume").path == Path(record["path"])


def test_a_split_without_unlabeled_images(
    toy: DatasetDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslseg: Sslseg
) -> None:
    monkeypatch.chdir(tmp_path)
    make_split(toy, SplitOptions(ratio="1")).save(tmp_path / "splits" / "all")
    done = sslseg("train", *SHORT, *FEW)
    assert done.path == Path(f"runs/{NOW.without_unlabeled}-all")
    assert said(done.err)[0].startswith(f"method auto: {NOW.without_unlabeled}, as the split has no unlabeled images;")


@pytest.mark.parametrize(
    ("toml", "flags", "expected"),
    [
        ("", ["--method", "supervised"], "supervised"),
        ('method = "supervised"', [], "supervised"),
        ("", ["--config", "supervised/default"], "supervised"),
        ('config = "supervised/default"', [], "supervised"),
        ('method = "auto"', ["--config", "supervised/default"], "supervised"),
        ("", ["--config", "supervised/default", "--method", "auto"], "supervised"),
        ("", ["--method", "auto"], None),
        ('method = "auto"', [], None),
        ('method = "supervised"', ["--method", "auto"], None),
        ('config = "supervised/default"', ["--method", "auto"], None),
    ],
)
def test_who_names_a_method_or_a_config_gets_it(
    workspace: Path, sslseg: Sslseg, monkeypatch: pytest.MonkeyPatch, toml: str, flags: list[str], expected: str | None
) -> None:
    """What reaches the worker; None stands for auto."""
    seen: list[tuple[Path, TrainOptions]] = []

    def remember(split: Split, folder: Path, options: TrainOptions) -> Run:
        seen.append((folder, options))
        return Run(folder)

    monkeypatch.setattr("sslseg.train.train", remember)
    (workspace / "sslseg.toml").write_text(f"[train]\n{toml}\n")
    assert sslseg("train", *flags, "--dry-run").code == 0
    ((folder, options),) = seen
    assert folder.name == f"{expected or NOW.recommended}-toy-4"
    assert options.method == (expected or "auto")
    config = build_config(Split.load(workspace / "splits" / "toy-4"), options)
    assert config.method.type == type_of(expected or NOW.recommended)


def test_a_named_method_is_recorded_as_such(workspace: Path, sslseg: Sslseg) -> None:
    done = sslseg("train", "--method", "supervised", *SHORT, *FEW)
    assert said(done.err) == []
    assert Run(done.path).read()["auto"] is None
    config = sslseg("train", "--config", "supervised/default", *SHORT, *FEW, "--run-dir", "config")
    assert said(config.err) == []
    assert Run(config.path).read()["auto"] is None


@pytest.mark.usefixtures("recommend")
def test_a_new_recommendation_is_taken_by_new_runs(workspace: Path, sslseg: Sslseg) -> None:
    assert sslseg("train", *SHORT, *FEW, "--dry-run").code == 0
    assert sslseg("train", *SHORT, *FEW).path == Path(f"runs/{OTHER}-toy-4")


@pytest.mark.parametrize("place", [[], ["--run-dir", "mine"]])
def test_a_resumed_run_keeps_its_method_though_the_recommendation_has_changed(
    workspace: Path, sslseg: Sslseg, request: pytest.FixtureRequest, place: list[str]
) -> None:
    command = ("train", *SHORT, *FEW, "--batch-size", "1", *place)
    run = sslseg(*command).path
    finished = Run(run).read()
    edit(run, "last", "best", "protocol", status="running")
    request.getfixturevalue("recommend")
    done = sslseg(*command, "--resume")
    assert done.path == run
    assert said(done.err) == [f"method auto: {NOW.recommended}, with which {run} began; --run-dir names another run"]
    assert Run(run).read() == finished
    # A run of the new recommendation is newer: from now on it is this one.
    if not place:
        newer = sslseg(*command).path
        assert newer == Path(f"runs/{OTHER}-toy-4")
        assert sslseg(*command, "--resume").path == newer


def test_an_unfinished_run_of_an_earlier_version_goes_on(workspace: Path, sslseg: Sslseg) -> None:
    """Its default was the method without unlabeled images, and its record does not say who chose."""
    run = sslseg("train", "--method", NOW.without_unlabeled, *SHORT, *FEW).path
    edit(run, "auto", "last", "best", "protocol", status="running")
    done = sslseg("train", *SHORT, *FEW, "--resume")
    assert done.path == run
    record = Run(run).read()
    assert (record["status"], record["method"]) == ("finished", type_of(NOW.without_unlabeled))
    # A finished one is not gone on with by default: the default is another one today.
    edit(run, "auto")
    assert sslseg("train", *SHORT, *FEW, "--resume").path == Path(f"runs/{NOW.recommended}-toy-4")


@pytest.mark.parametrize("dropped", [[], ["auto"]])
def test_a_run_of_a_named_method_keeps_it(workspace: Path, sslseg: Sslseg, dropped: list[str]) -> None:
    """The same directory, without the name of the method."""
    run = sslseg("train", "--method", OTHER, *SHORT, *FEW, "--run-dir", "mine").path
    edit(run, *dropped, "last", "best", "protocol", status="running")
    done = sslseg("train", *SHORT, *FEW, "--run-dir", "mine", "--resume")
    assert done.path == run
    record = Run(run).read()
    assert (record["method"], record["auto"]) == (type_of(OTHER), OTHER if dropped else None)


def test_a_dry_run_says_what_is_chosen_and_writes_nothing(workspace: Path, sslseg: Sslseg) -> None:
    before = sorted(workspace.rglob("*"))
    done = sslseg("train", *SHORT, "--dry-run")
    assert (done.code, len(said(done.err))) == (0, 1)
    assert sorted(workspace.rglob("*")) == before


def test_an_error_is_still_one_line(workspace: Path, sslseg: Sslseg) -> None:
    for wrong in (("--lr", "-1"), ("--set", "model.backbone.init_cfg={'type': 'Pretrained', 'checkpoint': 'no.pth'}")):
        done = sslseg("train", *SHORT, *wrong)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err


def test_the_worker_alone(tmp_path: Path, toy_split: Split, capfd: pytest.CaptureFixture[str]) -> None:
    run = train(toy_split, tmp_path / "run", replace(OPTIONS, method="auto", iterations=1, val_interval=9))
    assert (run.read()["method"], run.read()["auto"]) == (type_of(NOW.recommended), NOW.recommended)
    assert len(said(capfd.readouterr().err)) == 1


def test_unknown_names_and_the_list_of_methods(workspace: Path, sslseg: Sslseg) -> None:
    wrong = sslseg("train", "--method", "aut")
    assert (wrong.code, "did you mean 'auto'?" in wrong.err) == (2, True)
    listed = sslseg("methods", "--json")
    assert json.loads(listed.out)["auto"] == NOW.summary
    assert NOW.recommended in NOW.summary
    assert sslseg("methods").out.split() == ["auto", *method_names()]
    one = sslseg("methods", "auto")
    assert one.out == f"{NOW.recommended}\n"
    assert NOW.summary in one.err
    # A folder of this name does not take its place.
    (workspace / "configs" / "auto").mkdir(parents=True)
    (workspace / "configs" / "auto" / "default.py").write_text("_base_ = ['sslseg::supervised/default.py']\n")
    assert "auto" not in method_names()
    assert choose(Split.load(workspace / "splits" / "toy-4"))[0] == NOW.recommended


@pytest.mark.slow
def test_the_pipeline_without_a_name(workspace: Path) -> None:
    command, short = f"{sys.executable} -m sslseg", " ".join(SHORT)
    line = (
        f"{command} train {short} | {command} pseudolabel - --subset train --workers 0"
        f" | {command} refine - --method auto --iterations 1 --workers 0 | {command} eval - --workers 0 --json"
    )
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=workspace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 6
    assert (workspace / "runs" / f"{NOW.recommended}-toy-4").is_dir()


@pytest.mark.slow
def test_each_of_two_ranks_gets_images_to_mix(workspace: Path) -> None:
    done = program("train", *SHORT, *FEW, cwd=workspace, ranks=2)
    assert done.code == 0, done.err
    (line,) = said(done.err)
    assert "with 4 unlabeled images per iteration" in line
    # Gone on with by one process: the batch is that which the run began with.
    again = program("train", *SHORT, *FEW, "--resume", cwd=workspace)
    assert again.code == 0, again.err


def test_tools_run_the_recommended_method_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "tools"))
    from pipeline import steps

    first, *_ = found = steps("auto", lambda name, number: f"{name}{number}")
    assert first.words("split")[:7] == ["train", "--split", "split", "--run-dir", "auto1", "--method", "auto"]
    assert len(found) == len(find_method(NOW.recommended).cls.pipeline)
    listed = subprocess.run(["make", "help"], cwd=CHECKOUT, capture_output=True, text=True).stdout
    assert "make auto\n" in listed
