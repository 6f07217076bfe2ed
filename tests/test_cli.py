"""The program's contract: one line on stdout, exit codes, quick help, everything documented."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from sslseg.cli.app import app
from sslseg.cli.console import run as run_main
from sslseg.config.auto import recommendation
from sslseg.errors import Interrupted, UserError
from tests.conftest import SHORT, SUPERVISED, Sslseg, program

DOCS = Path(__file__).parent.parent / "docs"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


SMALLEST = """
import typer

app = typer.Typer()
for name in ("one", "two"):
    app.command(name)(lambda number: number)
app()
"""


def test_help_is_quick() -> None:
    """About as quick as Typer's own: no heavy package is loaded. A machine's speed does not matter."""

    def took(*command: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *command, "--help"], check=True, capture_output=True)
        return time.perf_counter() - started

    pairs = [(took("-m", "sslseg"), took("-c", SMALLEST)) for _ in range(5)]
    ours, typers = (min(times) for times in zip(*pairs, strict=True))
    assert ours < 1.8 * typers


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_is_documented(name: str) -> None:
    """The tables come from the program; `make docs-tables` rewrites them."""
    sys.path.insert(0, str(DOCS.parent / "tools"))
    from tables import pages

    path = DOCS / "commands" / f"{name}.md"
    text, command = path.read_text(), COMMANDS[name]
    assert text == pages()[path], "run `make docs-tables`"
    assert command.help
    for parameter in command.params:
        assert parameter.name == "help" or parameter.help, f"{name}: {parameter.name} has no help"
        assert parameter.name == "help" or parameter.opts[0] in text or parameter.name.upper() in text


@pytest.mark.slow
def test_the_pipeline_of_the_design(workspace: Path) -> None:
    command = f"{sys.executable} -m sslseg"
    short = " ".join(SHORT)
    line = (
        f"{command} train --method supervised {short} | {command} pseudolabel - --workers 0 | {command} eval - --json"
    )
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=workspace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 12
    assert "\x1b" not in done.stderr  # no escape codes in a file
    assert max(map(len, done.stderr.splitlines())) < 200


@pytest.mark.slow
def test_a_failed_command_before_us_in_the_pipeline(workspace: Path) -> None:
    done = program("eval", "-", cwd=workspace, stdin="")
    assert done.code == 2
    assert "stdin is empty" in done.err
    json_line = program("inspect", "-", cwd=workspace, stdin=json.dumps(dict(path="splits/toy-4")))
    assert json_line.out == "splits/toy-4\n"


@pytest.mark.slow
def test_every_commands_json_parses_and_names_its_path(
    workspace: Path, toy_folder: Path, sslseg: Sslseg, tmp_path: Path
) -> None:
    def record(*arguments: str | Path) -> dict:
        done = sslseg(*arguments, "--json")
        assert done.code == 0, done.err
        assert done.out.count("\n") == 1
        return json.loads(done.out)

    assert record("split", "--data", toy_folder, "--count", "4")["labeled"] == 4
    run = record(*SUPERVISED)
    assert run["best"]["mIoU"] >= run["last"]["mIoU"]
    store = record("pseudolabel", "--workers", "0")
    assert store["ids"] == 12
    assert record("verify", store["path"])["kinds"] == ["masks", "confidence", "entropy"]
    assert record("merge", store["path"], "--out", tmp_path / "m.h5")["ids"] == 12
    assert record("eval", "--workers", "0")["protocol"] == "whole"
    assert Path(record("export")["path"]).is_dir()
    kinds = {
        "split": Path(run["path"]) / "split",
        "run": run["path"],
        "checkpoint": Path(run["path"]) / "checkpoints" / "last.pth",
        "store": store["path"],
    }
    for kind, path in kinds.items():
        assert record("inspect", path)["kind"] == kind


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("x.png is wrong; fix it"), 2, "error: x.png is wrong; fix it"),
        (OSError(errno.ENOSPC, "full", "a.h5"), 2, "cannot write a.h5: no space left"),
        (OSError(errno.EROFS, "ro", "a.h5"), 2, "read-only"),
        (PermissionError(errno.EACCES, "no", "a.h5"), 2, "permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted("saved at iteration 3"), 130, "saved at iteration 3"),
        (typer.BadParameter("no such thing"), 2, "no such thing"),
        (RuntimeError("bug"), 1, "internal error"),
    ],
)
def test_exit_codes(capsys: pytest.CaptureFixture[str], error: BaseException, code: int, message: str) -> None:
    def fail() -> None:
        raise error

    assert run_main(fail) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert ("Traceback" in captured.err) == (code == 1)
    if code == 2:
        assert captured.err.count("\n") == 1


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_damaged_image_met_in_training_is_one_line(
    toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslseg: Sslseg, workers: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy_folder, tmp_path / "toy")
    sslseg("split", "--data", "toy", "--count", "16")
    (tmp_path / "toy" / "images" / "train" / "003.png").write_bytes(b"junk")
    done = sslseg(*SUPERVISED, "--iterations", "8", "--batch-size", "4", "--workers", workers)
    assert (done.code, done.out) == (2, "")
    assert "003.png cannot be decoded" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_wrong_usage_is_one_line(sslseg: Sslseg) -> None:
    for arguments in (("trian",), ("train", "--iterations", "many"), ("split", "--nope"), ("merge", "a.h5")):
        done = sslseg(*arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
        assert "Traceback" not in done.err


def test_a_read_only_folder(workspace: Path, sslseg: Sslseg, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "runs")

    monkeypatch.setattr(Path, "mkdir", refuse)
    done = sslseg(*SUPERVISED)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "runs: the disk is read-only" in done.err


WAITING = """
import os, sys
from sslseg.__main__ import main
assert "torch" not in sys.modules, "its OpenMP reads the environment when it is loaded"
sys.argv[1:] = ["--version"]
try:
    main()
finally:
    print(os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), (dict(OMP_WAIT_POLICY="ACTIVE"), "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(given: dict[str, str], policy: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    done = subprocess.run([sys.executable, "-c", WAITING], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == policy, done.stderr


def test_version() -> None:
    from sslseg import __version__

    done = subprocess.run([sys.executable, "-m", "sslseg", "--version"], capture_output=True, text=True)
    assert done.stdout == f"sslseg {__version__}\n"


@pytest.mark.slow
def test_an_empty_folder_is_enough_to_try_a_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslseg: Sslseg
) -> None:
    monkeypatch.chdir(tmp_path)
    done = sslseg("train", *SHORT, "--val-interval", "9")
    assert done.path == Path(f"runs/{recommendation().recommended}-shapes-1_8-seed0")
    assert "made splits/shapes-1_8-seed0/split.json, in which 1/8 of the built-in synthetic dataset" in done.err
    again = sslseg(*SUPERVISED, "--method", "cutmix", "--dry-run")
    assert "made splits" not in again.err
    (tmp_path / "sslseg.toml").write_text('[dataset]\nlayout = "folder"\nroot = "."\nclasses = ["a", "b"]\n')
    (tmp_path / "splits").rename(tmp_path / "elsewhere")
    missing = sslseg(*SUPERVISED)
    assert (missing.code, "make one with `sslseg split" in missing.err) == (2, True)
