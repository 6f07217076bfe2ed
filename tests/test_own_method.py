"""A method of one's own, as docs/own-method.md shows it, through every command: installed, and named by a config."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sslseg import plugins
from sslseg.config.files import model_files
from sslseg.store import StoreReader
from tests.conftest import SHORT, Done, program

PAGE = Path(__file__).resolve().parent.parent / "docs" / "own-method.md"
BLOCK = re.compile(r'```\w+ title="([^"]+)"\n(.*?)```', re.DOTALL)


def blocks() -> dict[str, str]:
    return dict(BLOCK.findall(PAGE.read_text()))


def test_the_page_s_method_is_short() -> None:
    lines = [line for line in blocks()["my_margin/__init__.py"].splitlines() if line.strip()]
    assert len(lines) <= 25


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's package, installed into a folder of its own."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name, text in blocks().items():
        if name != "margin.py":
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", str(site), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture(params=["entry point", "custom_imports"])
def margin(
    request: pytest.FixtureRequest, workspace: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The ways to make the method known; returns the options of ``train`` that name it."""
    if request.param == "entry point":
        monkeypatch.setenv("PYTHONPATH", str(installed))
        return ["--method", "my-margin"]
    (workspace / "my_margin.py").write_text(blocks()["my_margin/__init__.py"])
    (workspace / "margin.py").write_text(blocks()["margin.py"])
    return ["--config", "margin.py"]


def run(folder: Path, *arguments: str | Path) -> Done:
    done = program(*arguments, cwd=folder)
    assert done.code == 0, done.err
    return done


@pytest.mark.slow
def test_a_method_of_one_s_own_is_a_citizen_of_every_command(workspace: Path, margin: list[str]) -> None:
    """Each command is a process of its own: what it does not load itself is not there."""
    command = functools.partial(run, workspace)
    split = command("split", "--count", "4", "--data", _toy(workspace), "--out", "split").path
    train = ["train", *margin, "--split", split, "--set", "method.threshold=0.5", "--run-dir", "run"]
    short = (*SHORT, "--iterations", "60", "--val-interval", "10")
    _stop_early([*train, *short], workspace)
    command(*train, *short, "--resume")
    command(*train[:-1], "straight", *short)
    parts, whole = (workspace / name / "checkpoints" / "last.pth" for name in ("run", "straight"))
    assert parts.read_bytes() == whole.read_bytes()
    store = StoreReader(command("pseudolabel", "run", "--subset", "train", "--workers", "0").path)
    assert list(store.kinds) == ["masks", "confidence", "entropy", "margin"]
    assert store.high("margin") == "right"
    scores = json.loads(command("eval", store.path, "--json").out)
    assert 0 <= scores["error_detection"]["margin"]["auroc"] <= 1
    assert 0 <= json.loads(command("eval", "run", "--workers", "0", "--json").out)["mIoU"] <= 100
    refined = command("refine", store.path, "--keep", "margin>0.01", "--run-dir", "refined", *SHORT).path
    assert json.loads((workspace / refined / "run.json").read_text())["stage"] == 2
    exported = command("export", "run").path
    assert "EncoderDecoder" in (workspace / exported / "config.py").read_text()
    assert json.loads(command("inspect", "run", "--json").out)["settings"] == {"method.threshold": 0.5}
    assert json.loads(command("inspect", "run/checkpoints/best.pth", "--json").out)["method"] == "Margin"


@pytest.mark.slow
def test_a_plug_in_is_listed_with_its_settings(
    workspace: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(installed))
    assert "my-margin" in run(workspace, "methods").out.split()
    settings = json.loads(run(workspace, "methods", "my-margin", "--json").out)["settings"]
    assert (settings["method.threshold"]["default"], settings["method.threshold"]["value"]) == (0.9, 0.8)


@pytest.mark.slow
def test_a_config_in_the_working_folder_names_a_method(workspace: Path) -> None:
    (workspace / "my_margin.py").write_text(blocks()["my_margin/__init__.py"])
    (workspace / "configs" / "my-margin").mkdir(parents=True)
    (workspace / "configs" / "my-margin" / "default.py").write_text(blocks()["margin.py"])
    assert run(workspace, "train", "--method", "my-margin", *SHORT).path == Path("runs/my-margin-toy-4")
    assert run(workspace, "pseudolabel", "--workers", "0").path == Path("runs/my-margin-toy-4/stores/unlabeled.h5")


def _toy(workspace: Path) -> str:
    from sslseg.splits.split import Split

    return Split.load(workspace / "splits" / "toy-4").dataset.root


def _stop_early(arguments: list[str | Path], folder: Path) -> None:
    """Send Ctrl-C once the first checkpoint is there."""
    command = [sys.executable, "-m", "sslseg", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | dict(OMP_NUM_THREADS="1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    checkpoint = folder / "run" / "checkpoints" / "last.pth"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error


@pytest.mark.slow
def test_a_plug_in_that_cannot_be_imported_is_named_and_left_out(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "site" / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sslseg.methods]\nbroken = broken_plugin\n")
    (tmp_path / "site" / "broken_plugin.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    done = program("methods", cwd=workspace)
    assert done.code == 0
    assert "plug-in 'broken' (broken_plugin) is left out" in done.err
    assert "a_package_that_is_not_there" in done.err


@pytest.mark.slow
def test_a_module_that_is_missing_is_named(workspace: Path) -> None:
    (workspace / "margin.py").write_text(blocks()["margin.py"])
    done = program("train", "--config", "margin.py", *SHORT, cwd=workspace)
    assert done.code == 2
    assert "my_margin" in done.err
    assert "working" in done.err
    assert "Traceback" not in done.err


def test_the_configs_of_another_program_are_not_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder may be a checkout of mmseg, with hundreds of configs."""
    for name in ("pspnet/pspnet_r50.py", "_base_/models/own.py", "mine/default.py", "mine/other.py"):
        (tmp_path / "configs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "configs" / name).write_text("model = dict()\n")
    monkeypatch.chdir(tmp_path)
    names = plugins.config_paths()
    assert "pspnet/pspnet_r50" not in names
    assert {"mine/default", "mine/other", "cutmix/default"} <= names.keys()
    assert "mine" in plugins.method_names()
    assert "own" not in model_files()
