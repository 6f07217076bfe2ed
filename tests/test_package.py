"""The package as it is installed, its configs, and its tools."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sslseg.config import config_names, config_root, load_named, model_names
from sslseg.errors import UserError
from sslseg.split import Split, SplitOptions, make_split
from sslseg.train import TrainOptions, train

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_an_installed_wheel_finds_its_configs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True)
    site = tmp_path / "site"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    script = "from sslseg.config import config_root, load_named; print(config_root()); print(load_named('supervised/default').model.type)"
    environment = os.environ | dict(PYTHONPATH=str(site))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(site / "sslseg" / "configs"), "EncoderDecoder"], done.stderr


def test_presets_of_the_docs_are_there() -> None:
    assert config_root() == CHECKOUT / "configs"
    named = re.findall(r"`([a-z]+[0-9a-z]*_[a-z]\d+s?)`", (CHECKOUT / "docs" / "commands" / "train.md").read_text())
    assert set(named) == set(model_names())
    assert "supervised/default" in config_names()


@pytest.mark.parametrize("path", sorted((CHECKOUT / "configs").rglob("*.py")), ids=lambda path: path.stem)
def test_configs_are_data_of_at_most_40_lines(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 40
    assert all(isinstance(node, ast.Assign) for node in ast.parse(text).body)


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("model = dict(")
    with pytest.raises(UserError, match=r"bad\.py cannot be loaded"):
        load_named(str(tmp_path / "bad.py"))


def test_no_file_names_a_place_of_one_machine() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True).stdout.split()
    if not files:
        pytest.skip("not a git checkout: there is no list of the project's files")
    for name in files:
        if not name.endswith(".h5"):
            assert not re.search(
                r"/(work|root|farm)/", (CHECKOUT / name).read_text().replace("(work|root|farm)", "")
            ), name


def test_benchmark_page_is_written_from_records(tmp_path: Path, toy_split: Split) -> None:
    options = TrainOptions(iters=2, batch_size=2, crop=(48, 48), workers=0)
    runs = []
    for seed in (0, 1):
        split = make_split(toy_split.dataset, SplitOptions(count=4, seed=seed))
        runs.append(train(split, tmp_path / str(seed), TrainOptions(**{**options.__dict__, "seed": seed})))
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- written by tools/benchmark.py -->\nold\n<!-- end of what is written -->\n\nEnd.\n")
    command = [sys.executable, str(CHECKOUT / "tools" / "benchmark.py"), str(page), *(str(run.folder) for run in runs)]
    subprocess.run(command, check=True, capture_output=True)
    text = page.read_text()
    scores = [json.loads(run.record_path.read_text())["last"]["mIoU"] for run in runs]
    assert f"| toy | 4 | Supervised | 2 | 0 / 0, 1 / 1 | {sum(scores) / 2:.2f} ± " in text
    assert text.startswith("# Title")
    assert text.endswith("End.\n")
    assert "old" not in text


@pytest.mark.slow
def test_a_step_is_measured_against_its_bare_passes(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(CHECKOUT / "tools" / "bench_train.py"),
        "--steps",
        "6",
        "--batch-size",
        "2",
        "--json",
    ]
    environment = os.environ | dict(OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["step_ratio"] == pytest.approx(report["step_ms"] / report["bare_ms"])
