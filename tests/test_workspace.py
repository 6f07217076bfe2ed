"""The working folder: sslseg.toml, defaults, the newest split and run; and what ``sslseg init`` writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sslseg.artifacts.workspace import Workspace
from sslseg.errors import UserError
from tests.conftest import MODEL, SUPERVISED, Sslseg


def test_init_describes_what_the_other_commands_then_use(
    toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslseg: Sslseg
) -> None:
    monkeypatch.chdir(tmp_path)
    record = json.loads(sslseg("init", "--data", toy_folder, "--ignore-index", "255", "--json").out)
    assert record["classes"][:2] == ["background", "disc"]
    text = (tmp_path / "sslseg.toml").read_text()
    assert 'layout = "folder"' in text
    described = Workspace.load().description()
    assert (described.num_classes, described.ignore_index, described.root) == (7, 255, str(toy_folder))
    split = sslseg("split", "--count", "4").path
    assert json.loads(split.read_text())["dataset"]["name"] == "toy"
    assert sslseg(*SUPERVISED, "--iterations", "1").path.name == "supervised-toy-4-seed0"
    again = sslseg("init", "--data", toy_folder)
    assert again.code == 2
    assert "--force" in again.err
    assert sslseg("init", "--data", toy_folder, "--force", "--classes", ",".join("abcdefg")).code == 0
    mismatch = sslseg(*SUPERVISED, "--iterations", "1", "--run-dir", "other")
    assert mismatch.code == 2
    assert "make a new split" in mismatch.err


@pytest.mark.slow
def test_flags_win_over_the_file(workspace: Path, sslseg: Sslseg) -> None:
    (workspace / "sslseg.toml").write_text(
        f'[train]\nmethod = "supervised"\nmodel = "{MODEL}"\niterations = 3\nbatch_size = 2\ncrop = 48\nworkers = 0\n'
    )
    run = sslseg("train").path
    assert json.loads((run / "run.json").read_text())["iterations"] == 3
    run = sslseg("train", "--iterations", "2", "--run-dir", "b").path
    assert json.loads((run / "run.json").read_text())["iterations"] == 2
    run = sslseg("train", "--epochs", "1", "--run-dir", "c").path
    assert json.loads((run / "run.json").read_text())["iterations"] == 6, "12 unlabeled images, 2 per iteration"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "'x' is unknown"),
        ("[nope]", "'nope' is unknown"),
        ("[train]\nspeed = 1", "no key 'speed'"),
        ("[train]\niterations = 'many'", "must be int"),
        ("[train]\niters = true", "must be int"),
        ("[train\n", "cannot be read"),
        ("[dataset]\nlayout = 'folder'", "lacks 'root'"),
        ("[dataset]\nlayout = 'x'\nroot = '.'\nclasses = ['a', 'b']", "layout 'x' is unknown"),
    ],
)
def test_a_wrong_file_names_section_and_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sslseg.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        Workspace.load(tmp_path).description()


def test_the_old_name_of_a_key_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "sslseg.toml").write_text("[train]\niters = 3\n")
    assert Workspace.load(tmp_path).train() == {"iterations": 3}


def test_without_a_file_the_synthetic_dataset_is_used(tmp_path: Path) -> None:
    assert Workspace.load(tmp_path).description().layout == "shapes"


def test_the_newest_is_taken(tmp_path: Path) -> None:
    workspace = Workspace.load(tmp_path)
    with pytest.raises(UserError, match="sslseg split"):
        workspace.newest_split()
    with pytest.raises(UserError, match="sslseg train"):
        workspace.newest_run()
    for age, name in enumerate(("b", "c", "a")):
        for path in (tmp_path / "splits" / name / "split.json", tmp_path / "runs" / name / "run.json"):
            path.parent.mkdir(parents=True)
            path.touch()
            os.utime(path, (1000 + age, 1000 + age))
    assert workspace.newest_split() == tmp_path / "splits" / "a" / "split.json"
    assert workspace.newest_run() == tmp_path / "runs" / "a"


def test_class_names_come_from_a_flag_or_a_file(toy_folder: Path, tmp_path: Path) -> None:
    from sslseg.init import describe

    names = tmp_path / "names.txt"
    names.write_text("\n".join("hijklmn"))
    assert describe(toy_folder, classes=str(names)).description.classes == tuple("hijklmn")
    assert describe(toy_folder, classes="a, b,c,d,e,f,g").description.classes == tuple("abcdefg")
    with pytest.raises(UserError, match="twice"):
        describe(toy_folder, classes="a,a,c,d,e,f,g")
