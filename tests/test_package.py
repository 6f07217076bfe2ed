"""The package as it is installed, its configs, and its tools."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sslseg.config.build import TrainOptions, build_config
from sslseg.config.files import load, load_model, load_named, model_files
from sslseg.config.lengths import batch_counts
from sslseg.data.reading import read_image, read_mask
from sslseg.data.transforms import MultiView
from sslseg.engine.build import transforms_of
from sslseg.errors import UserError
from sslseg.plugins import config_paths, own_configs
from sslseg.registry import MODELS
from sslseg.split import SplitOptions, make_split
from sslseg.splits.split import Split
from sslseg.train import train
from tests.conftest import MODEL, OPTIONS, SHORT, Sslseg

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_an_installed_wheel_finds_its_configs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True)
    site = tmp_path / "site"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    script = (
        "from sslseg.plugins import own_configs; from sslseg.config.files import load_method;"
        " from sslseg.config.auto import recommendation;"
        " print(own_configs()); print(load_method(recommendation().recommended).model.type)"
    )
    environment = os.environ | dict(PYTHONPATH=str(site))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(site / "sslseg" / "configs"), "EncoderDecoder"], done.stderr


def test_presets_of_the_docs_are_there() -> None:
    assert own_configs() == CHECKOUT / "configs"
    page = (CHECKOUT / "docs" / "commands" / "train.md").read_text()
    named = re.findall(r"`([a-z]+[0-9a-z]*_(?:[a-z]\d+s?|lite\d))`", page)
    assert set(named) == set(model_files())
    assert "supervised/default" in config_paths()


@pytest.mark.parametrize("path", sorted((CHECKOUT / "configs").rglob("*.py")), ids=lambda path: path.stem)
def test_configs_are_data_of_at_most_40_lines(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 40
    assert all(isinstance(node, ast.Assign) for node in ast.parse(text).body)


def bases(path: Path) -> list[Path]:
    """Return the files of ours that a config is based on directly, and mmseg's as a name."""
    found = re.search(r"_base_ = (\[.*?\]|'[^']*')", path.read_text(), re.DOTALL)
    if found is None:
        return []
    named = ast.literal_eval(found[1])
    return [path.parent / name for name in ([named] if isinstance(named, str) else named)]


def levels(path: Path) -> int:
    return 0 if not path.is_file() else max((1 + levels(base) for base in bases(path)), default=0)


@pytest.mark.parametrize(
    "path", sorted((CHECKOUT / "configs").glob("[!_]*/*.py")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_configs_have_at_most_three_levels_above_a_leaf(path: Path) -> None:
    assert levels(path) <= 3
    # METHOD/DATASET[_ROW]; a leaf of one dataset is not based on another one's.
    dataset = path.stem.split("_")[0]
    assert dataset in ("default", "voc", "cityscapes", "pascal")
    every = [base.name for base in bases(path)]
    assert not any(name.startswith(other) for name in every for other in ("voc", "cityscapes") if other != dataset)


def test_no_two_configs_are_identical() -> None:
    texts: dict[str, Path] = {}
    for path in (CHECKOUT / "configs").rglob("*.py"):
        data = ast.dump(ast.parse(path.read_text()))
        assert data not in texts, (path, texts[data])
        texts[data] = path


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


@pytest.mark.slow
def test_benchmark_page_is_written_from_records(tmp_path: Path, toy_split: Split) -> None:
    runs = []
    for seed in (0, 1):
        split = make_split(toy_split.dataset, SplitOptions(count=4, seed=seed))
        runs.append(train(split, tmp_path / str(seed), replace(OPTIONS, iterations=2, seed=seed)))
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- written by tools/benchmark.py -->\nold\n<!-- end of what is written -->\n\nEnd.\n")
    command = [sys.executable, str(CHECKOUT / "tools" / "benchmark.py"), str(page), *(str(run.folder) for run in runs)]
    subprocess.run(command, check=True, capture_output=True)
    text = page.read_text()
    scores = [json.loads(run.record_path.read_text())["last"]["mIoU"] for run in runs]
    assert (
        f"| toy | 4 | Supervised | ResNetV1c, DepthwiseSeparableASPP | 2 | 0 / 0, 1 / 1 | {sum(scores) / 2:.2f} ± "
        in text
    )
    assert text.startswith("# Title")
    assert text.endswith("End.\n")
    assert "old" not in text
    # A store beside the runs: its own masks, those beside them, and how well its scores know the errors.
    ranks = {kind: dict(auroc=value, average_precision=0.5) for kind, value in (("flaw", 0.75), ("entropy", 0.5))}
    other = dict(mIoU=40.0)
    for run in runs:
        run.stores.mkdir()
        record = dict(mIoU=41.0, error_detection=ranks, other_masks={"model_masks/left": other})
        (run.stores / "train-eval-unlabeled.json").write_text(json.dumps(record))
    subprocess.run(command, check=True, capture_output=True)
    row = "| Supervised | 41.00 ± 0.00 | model_masks/left: 40.00 ± 0.00 | 75.00 ± 0.00 | - | 50.00 ± 0.00 |"
    assert row in page.read_text().splitlines()


@pytest.mark.slow
def test_an_iteration_is_measured_against_its_bare_passes(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(CHECKOUT / "tools" / "bench_train.py"),
        *("--method", "supervised", "three-stage"),
        *("--model", MODEL, "--iterations", "6", "--batch-size", "2", "--json"),
    ]
    environment = os.environ | dict(OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reports = list(map(json.loads, done.stdout.splitlines()))
    assert [report["method"] for report in reports] == ["Supervised", "ThreeStage"]
    for report in reports:
        ratios = report["iteration_ratios"]
        assert len(ratios) == 3, "of six iterations, two at a time"
        assert report["iteration_ratio"] == statistics.median(ratios)
        assert min(ratios) <= report["iteration_ms"] / report["bare_ms"] <= max(ratios)


@pytest.mark.slow
def test_one_decoder_takes_at_most_0_65_of_the_memory_of_thirty(tmp_path: Path) -> None:
    """Tu et al., Table 4: 15k of 24k; here on EfficientNet-Lite0."""
    command = [sys.executable, str(CHECKOUT / "tools" / "bench_train.py"), "--method", "guidedmix"]
    command += [str(CHECKOUT / "tools" / "cct_config.py")]
    command += ["--iterations", "2", "--batch-size", "4", "--json"]
    environment = os.environ | dict(OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, thirty = (json.loads(line)["training_memory_gib"] for line in done.stdout.splitlines())
    assert 0 < one <= 0.65 * thirty, (one, thirty)


@pytest.mark.parametrize("name", config_paths())
def test_every_shipped_config_describes_a_method_that_can_be_built(toy_split: Split, name: str) -> None:
    config = build_config(toy_split, TrainOptions(config=name, pretrained="none"))
    model = MODELS.build(dict(config.method, segmentor=load_model(MODEL).model | dict(type="EncoderDecoder")))
    for stream, views in model.views.items():
        assert all(MultiView(stream, {view: transforms_of(view, config)}) for view in views)
    assert batch_counts(config, model.views)


@pytest.mark.parametrize(
    "path", sorted((CHECKOUT / "configs" / "_base_" / "recipes").glob("*.py")), ids=lambda path: path.stem
)
def test_no_paper_samples_a_crop_again(path: Path) -> None:
    """No paper does: labeled and unlabeled crops are to come from one distribution (GCT, Sec. 3.2)."""
    assert load(path).data.cat_max_ratio == 1.0


def test_the_paper_s_settings_are_those_of_the_paper(toy_split: Split) -> None:
    """Ke et al., Sec. IV-B."""
    voc = {name: build_config(toy_split, TrainOptions(config=f"three-stage/voc_{name}")) for name in VOC}
    for name, (weight, first, second) in VOC.items():
        config = voc[name]
        assert config.method.consistency_weight == config.method.pseudo_weight == weight
        assert batch_counts(config, ("labeled", "train")) == dict(labeled=second, train=first)
        assert tuple(config.data.crop) == (321, 321)
        assert (config.optimizer.type, config.optimizer.lr, config.schedule.iterations) == ("Adam", 3e-5, 60000)
        assert config.model.decode_head.type == "DeepLabV2Head"
        assert config.model.backbone.depth == 101
    city = build_config(toy_split, TrainOptions(config="three-stage/cityscapes_1488"))
    assert batch_counts(city, ("labeled", "train")) == dict(labeled=2, train=3)
    assert (tuple(city.data.crop), tuple(city.data.scale)) == ((256, 512), (1.0, 1.0))


@pytest.mark.parametrize(
    ("name", "batch", "crop", "largest", "pairs"),
    [
        ("voc", 12, 321, 0.5, "similar"),
        ("voc_512", 12, 512, 0.5, "similar"),
        ("cityscapes", 8, 513, 0.3, "random"),
        ("pascal_context", 8, 480, 0.4, "similar"),
    ],
)
def test_guidedmix_s_settings_are_those_of_the_paper(
    toy_split: Split, name: str, batch: int, crop: int, largest: float, pairs: str
) -> None:
    """Tu et al., Secs. 4.1, 4.2, 4.4 and 4.5."""
    config = build_config(toy_split, TrainOptions(config=f"guidedmix/{name}"))
    assert (config.data.batch_size, tuple(config.data.crop), tuple(config.data.scale)) == (
        batch,
        (crop, crop),
        (0.5, 2.0),
    )
    assert (config.method.lambda_max, config.method.pairs) == (largest, pairs)
    assert bool(config.method.classifier_weight) is (pairs == "similar")
    optimizer = config.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("SGD", 1e-3, 0.9, 1e-4)
    assert (config.schedule.iterations, config.schedule.power) == (40000, 0.9)
    assert config.model.backbone.depth == 101
    assert config.model.pretrained == "open-mmlab://resnet101_v1c"


VOC = {"1_50": (0.25, 1, 9), "1_20": (1.25, 1, 9), "1_8": (0.625, 2, 8)}


def test_a_dataset_can_be_made_smaller(toy_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(CHECKOUT / "tools" / "resize_dataset.py"), str(toy_folder), str(tmp_path / "half")]
    subprocess.run([*command, "--factor", "0.5"], check=True, capture_output=True)
    name = "train/000.png"
    table = np.arange(1 << 16).astype(np.uint16)
    before, after = (read_mask(root / "masks" / name, table) for root in (toy_folder, tmp_path / "half"))
    assert after.shape == (32, 32)
    # Nearest: every label comes from the block that it stands for.
    blocks = before.reshape(32, 2, 32, 2).transpose(0, 2, 1, 3).reshape(32, 32, 4)
    assert (blocks == after[..., None]).any(axis=2).all()
    image = read_image(tmp_path / "half" / "images" / name).astype(float)
    mean = read_image(toy_folder / "images" / name).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(image - mean).max() <= 1
    assert (tmp_path / "half" / "classes.txt").exists()


class InThisThread:
    """Stands in for a pool of threads: training handles signals, which only the main thread may."""

    def submit(self, work: Callable[..., object], *arguments: object) -> Future[object]:
        future: Future[object] = Future()
        future.set_result(work(*arguments))
        return future


@pytest.mark.slow
def test_methods_are_run_on_equal_terms_and_only_once(
    tmp_path: Path, toy_folder: Path, sslseg: Sslseg, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands run in this process; that each is one of its own proves nothing more."""
    monkeypatch.syspath_prepend(str(CHECKOUT / "tools"))
    import run_methods

    work, finished = tmp_path / "work", []
    work.mkdir()
    monkeypatch.chdir(work)

    def run(chain: run_methods.Chain, *arguments: str) -> None:
        done = sslseg(*arguments)
        assert done.code == 0, done.err
        finished.append(done.err.count("iteration 4/4 loss"))

    monkeypatch.setattr(run_methods.Chain, "run", run)
    monkeypatch.setattr(run_methods, "ThreadPoolExecutor", lambda jobs: contextlib.nullcontext(InThisThread()))
    assert sslseg("init", "--data", toy_folder).code == 0
    usual = ["--methods", "supervised", "three-stage", "--", *SHORT]
    ablation = ["--methods", "cutmix", "--tag", "mse", "--", *SHORT, "--set", "method.consistency=mse"]
    ends = ["--methods", "supervised", "--ends", "--batch-size", "2", "--", *SHORT]
    for more in (usual, usual, ablation, ends):
        monkeypatch.setattr(sys, "argv", ["run_methods.py", ".", "--count", "4", "--seeds", "3", *more])
        run_methods.main()
    runs = [work / "runs" / f"{name}-seed3" for name in ("supervised", "three-stage-stage2", "three-stage-stage3")]
    assert sum(finished) == 6
    runs += [work / "runs" / f"{name}-seed3" for name in ("cutmix-mse", "supervised-all", "supervised-double")]
    page = tmp_path / "page.md"
    page.write_text("<!-- written by tools/benchmark.py -->\n<!-- end of what is written -->\n")
    command = [sys.executable, str(CHECKOUT / "tools" / "benchmark.py"), str(page), *map(str, runs)]
    subprocess.run(command, check=True, capture_output=True)
    rows = [line.split(" | ") for line in page.read_text().splitlines() if "| toy |" in line]
    double = "Supervised (data.batch_size=4)"
    names = [
        "Supervised",
        double,
        "CutMix (consistency=mse)",
        "ThreeStage, stage 2",
        "ThreeStage, stage 3",
        "Supervised",
    ]
    assert [row[2] for row in rows] == names
    assert [row[1] for row in rows] == ["4"] * 5 + ["16"]
    ends = [json.loads((runs[index] / "run.json").read_text())["last"]["mIoU"] for index in (0, 4)]
    assert f"Headroom of toy at 4 labels, 4 iterations, {rows[0][3]}: {ends[1] - ends[0]:.2f} mIoU." in page.read_text()
    assert all(float(row[10]) > 0 for row in rows[1:5])
    rows = [rows[0], *rows[3:5]]
    runs = runs[:3]
    quality = json.loads((runs[1] / "stores" / "train-eval-unlabeled.json").read_text())
    assert quality["images"] == 12
    assert rows[1][11] == f"{quality['mIoU']:.2f}"
    scores = [json.loads((run / "run.json").read_text())["last"]["mIoU"] for run in runs]
    assert [row[8] for row in rows] == ["-", f"{scores[1] - scores[0]:.2f}", f"{scores[2] - scores[0]:.2f}"]
