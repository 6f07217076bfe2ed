"""Training: what it writes, what it refuses, and that it can be stopped anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sslseg.catalog import find_method, methods
from sslseg.config.build import build_config
from sslseg.config.files import model_files
from sslseg.data import reading as data_files
from sslseg.errors import Interrupted, UserError
from sslseg.splits.split import Split
from sslseg.train import train
from tests.conftest import MODEL, OPTIONS, SUPERVISED, Sslseg, program

EVERY = methods()


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_run_directory_holds_what_the_docs_say(workspace: Path, sslseg: Sslseg) -> None:
    run = sslseg(*SUPERVISED, "--val-interval", "2").path
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["last"]["iteration"] == 4
    assert record["best"]["mIoU"] >= record["last"]["mIoU"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "val" in line] == [2, 4]
    assert lines[-1]["val"]["mIoU"] == record["last"]["mIoU"]
    assert (run / "config.py").exists()
    assert (run / "split" / "labeled.txt").read_text().count("\n") == 4


@pytest.mark.slow
def test_equal_seeds_give_equal_files_and_others_do_not(tmp_path: Path, toy_split: Split) -> None:
    runs = [train(toy_split, tmp_path / name, OPTIONS) for name in ("a", "b")]
    other = train(toy_split, tmp_path / "c", replace(OPTIONS, seed=1))
    for name in ("last.pth", "best.pth"):
        assert (runs[0].checkpoints / name).read_bytes() == (runs[1].checkpoints / name).read_bytes()
    assert (runs[0].checkpoints / "last.pth").read_bytes() != (other.checkpoints / "last.pth").read_bytes()


def test_number_of_workers_changes_nothing(tmp_path: Path, toy_split: Split) -> None:
    runs = [train(toy_split, tmp_path / str(n), replace(OPTIONS, iterations=4, workers=n)) for n in (0, 2)]
    first, second = (weights(run.checkpoints / "last.pth") for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stop_at"),
    [
        ("supervised", 1),
        ("supervised", 10),
        *((method.name, 7) for method in EVERY if not method.cls.needs_pseudo_masks),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path, toy_split: Split, monkeypatch: pytest.MonkeyPatch, method: str, stop_at: int
) -> None:
    # With a worker, so that drawing samples leaves this process's random numbers alone: dropout must come out equal, too.
    options = replace(OPTIONS, workers=1, method=method)
    whole = train(toy_split, tmp_path / "whole", options)
    from sslseg.engine.iterations import IterationSeed

    def interrupt(
        self: IterationSeed, runner: object, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        if batch_idx + 1 == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(IterationSeed, "after_train_iter", interrupt)
        with pytest.raises(Interrupted, match=f"iteration {stop_at} of 20"):
            train(toy_split, tmp_path / "parts", options)
    parts = train(toy_split, tmp_path / "parts", replace(options, resume=True))
    for name in ("last.pth", "best.pth"):
        assert (parts.checkpoints / name).read_bytes() == (whole.checkpoints / name).read_bytes()
    if method == "u2pl":
        assert weights(whole.checkpoints / "last.pth")["contrast.bank.counts"].sum() > 0
    records = [(run.folder / "metrics.jsonl").read_text().splitlines() for run in (whole, parts)]
    iterations = [[json.loads(line)["iteration"] for line in lines] for lines in records]
    assert iterations[0] == iterations[1]


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(workspace: Path) -> None:
    arguments = (*SUPERVISED, "--iterations", "60", "--val-interval", "10")
    command = [sys.executable, "-m", "sslseg", *arguments, "--run-dir", "killed"]
    # As many threads as `program` uses: with others the sums, and so the bits, would differ.
    environment = os.environ | dict(OMP_NUM_THREADS="1")
    process = subprocess.Popen(
        command, cwd=workspace, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoint = workspace / "killed" / "checkpoints" / "last.pth"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert torch.load(checkpoint, weights_only=True)["meta"]["iteration"] < 60
    done = program(*command[3:], "--resume", cwd=workspace)
    assert done.code == 0, done.err
    assert program(*command[3:-1], "straight", cwd=workspace).code == 0
    assert checkpoint.read_bytes() == (workspace / "straight" / "checkpoints" / "last.pth").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_process_group_saves_and_stops(workspace: Path, number: int) -> None:
    """As a terminal's Ctrl-C or a scheduler sends it: to the loader's workers, too."""
    arguments = (*SUPERVISED, "--iterations", "5000", "--workers", "2", "--run-dir", "group")
    command = [sys.executable, "-m", "sslseg", *arguments]
    process = subprocess.Popen(
        command, cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = workspace / "group" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert "of 5000; the same command with --resume goes on" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert torch.load(workspace / "group" / "checkpoints" / "last.pth", weights_only=True)["meta"]["iteration"] >= 50


def test_a_run_is_not_overwritten(workspace: Path, sslseg: Sslseg) -> None:
    run = sslseg(*SUPERVISED).path
    before = (run / "checkpoints" / "last.pth").read_bytes()
    again = sslseg(*SUPERVISED)
    assert again.code == 2
    assert "--resume" in again.err
    assert sslseg(*SUPERVISED, "--resume").path == run
    assert (run / "checkpoints" / "last.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--iterations", "6"), "schedule.iterations = 4, now it is 6"),
        (("--lr", "0.1"), "optimizer.lr"),
        (("--seed", "1"), "seed = 0, now it is 1"),
        (("--model", "fcn_r50", "--pretrained", "none"), "model."),
    ],
)
def test_resuming_with_other_settings_is_refused(
    workspace: Path, sslseg: Sslseg, arguments: tuple[str, ...], message: str
) -> None:
    run = sslseg(*SUPERVISED).path
    done = sslseg(*SUPERVISED, *arguments, "--resume")
    assert done.code == 2
    assert message in done.err
    assert sslseg(*SUPERVISED, "--workers", "1", "--resume").path == run


def test_killed_before_the_record_was_closed(workspace: Path, sslseg: Sslseg) -> None:
    run = sslseg(*SUPERVISED).path
    record = json.loads((run / "run.json").read_text())
    unfinished = {key: value for key, value in record.items() if key not in ("last", "best", "protocol")}
    (run / "run.json").write_text(json.dumps(unfinished | dict(status="running")))
    sslseg(*SUPERVISED, "--resume")
    assert json.loads((run / "run.json").read_text()) == record


def test_wrong_input_does_not_claim_the_directory(workspace: Path, sslseg: Sslseg) -> None:
    wrong = ("--set", "model.backbone.init_cfg={'type': 'Pretrained', 'checkpoint': 'nowhere.pth'}")
    assert sslseg(*SUPERVISED, *wrong).code == 2
    assert sslseg(*SUPERVISED).code == 0


def test_a_folder_of_other_files_is_left_alone(workspace: Path, sslseg: Sslseg) -> None:
    done = sslseg(*SUPERVISED, "--run-dir", ".")
    assert done.code == 2
    assert "holds other files" in done.err
    assert not (workspace / "config.py").exists()


def test_dry_run_writes_nothing(workspace: Path, sslseg: Sslseg) -> None:
    before = sorted(workspace.rglob("*"))
    assert sslseg(*SUPERVISED, "--dry-run").code == 0
    assert sorted(workspace.rglob("*")) == before


def test_masks_of_unlabeled_images_are_never_read(
    tmp_path: Path, toy_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    from sslseg.data import transforms

    def spy(path: str, table: object) -> object:
        read.add(str(path))
        return data_files.read_mask(path, table)  # type: ignore[arg-type]

    monkeypatch.setattr(transforms, "read_mask", spy)
    train(toy_split, tmp_path / "run", replace(OPTIONS, iterations=8))
    allowed = {sample.mask for name in ("labeled", "val") for sample in toy_split.samples(name)}
    assert read == allowed


def test_supervised_iteration_moves_every_parameter_of_the_student(tmp_path: Path, toy_split: Split) -> None:
    runs = [train(toy_split, tmp_path / str(n), replace(OPTIONS, iterations=n, lr=1e-2)) for n in (1, 6)]
    first, last = (weights(run.checkpoints / "last.pth") for run in runs)
    still = [name for name in first if first[name].is_floating_point() and torch.equal(first[name], last[name])]
    assert still == []


def test_users_own_mmseg_config(workspace: Path, sslseg: Sslseg) -> None:
    (workspace / "mine.py").write_text(
        "_base_ = 'mmseg::_base_/models/fcn_r50-d8.py'\n"
        "model = dict(pretrained=None, backbone=dict(depth=18, base_channels=8, stem_channels=8),\n"
        "    decode_head=dict(in_channels=64, channels=8, num_classes=2, out_channels=1,\n"
        "        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)),\n"
        "    auxiliary_head=dict(in_channels=32, channels=8))\n"
    )
    run = sslseg(*SUPERVISED, "--model", "mine.py").path
    head = weights(run / "checkpoints" / "last.pth")["student.decode_head.conv_seg.weight"]
    assert head.shape[0] == 7


RANKS = """
import os, sys, torch, warnings
warnings.simplefilter('ignore')
from pathlib import Path
import sslseg.engine.build as build
from sslseg.catalog import find_method
from sslseg.engine.checkpoints import unwrap
from sslseg.split import Split
from sslseg.train import TrainOptions, train
made = []
original = build.build_training
build.build_training = lambda *a: made.append(original(*a)) or made[-1]
options = dict(model=sys.argv[2], iterations=6, batch_size=4, crop=(48, 48), workers=0, val_interval=3)
split, method = Split.load(Path('splits/toy-4')), sys.argv[1]
if find_method(method).cls.needs_pseudo_masks:
    from sslseg.refine import find_input, refine
    refine(find_input('stage1'), split, Path('run'), TrainOptions(**options, launcher='pytorch'), method=method)
else:
    train(split, Path('run'), TrainOptions(**options, method=method, launcher='pytorch'))
torch.save(unwrap(made[-1].runner).state_dict(), f"rank{os.environ['RANK']}.pth")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", [method.name for method in EVERY])
def test_two_ranks_end_with_equal_weights(workspace: Path, method: str) -> None:
    (workspace / "ranks.py").write_text(RANKS)
    if find_method(method).cls.needs_pseudo_masks:
        assert program(*SUPERVISED, "--run-dir", "stage1", cwd=workspace).code == 0
        assert program("pseudolabel", "stage1", "--subset", "train", "--workers", "0", cwd=workspace).code == 0
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [*launcher, str(workspace / "ranks.py"), method, MODEL],
        cwd=workspace,
        env=os.environ | dict(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(workspace / f"rank{rank}.pth", weights_only=True) for rank in (0, 1)]
    saved = weights(workspace / "run" / "checkpoints" / "last.pth")
    for name in saved:
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        assert torch.equal(ranks[0][name], saved[name]), name
    if method == "u2pl":
        assert saved["contrast.bank.counts"].sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="nonsense"), "method 'nonsense' is unknown"),
        (dict(model="nonsense"), "model 'nonsense' is neither a preset"),
        (dict(config="nonsense"), "config 'nonsense' is neither"),
        (dict(iterations=0), "--iterations"),
        (dict(batch_size=0), "--batch-size"),
        (dict(lr=-1.0), "--lr"),
        (dict(crop=(8, 8)), "--crop"),
        (dict(amp=True), "--amp needs a GPU"),
        (dict(device="tpu"), "device 'tpu' is unknown"),
        (dict(launcher="pytorch"), "torchrun"),
        (dict(pretrained="nowhere.pth"), "--pretrained"),
        (dict(assignments={"model.nope.x": 1}), "there is no 'model.nope'"),
        (dict(assignments={"method.mix": "cutmix"}), "method.mix is not a setting of Supervised"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, toy_split: Split, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train(toy_split, tmp_path / "run", replace(OPTIONS, **options))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, toy_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sslseg.engine import checkpoints

    original, saved = checkpoints.save_checkpoint, []

    def full(path: Path, state: dict) -> None:
        saved.append(path.name)
        if len(saved) > 3:
            raise OSError(28, "No space left on device", str(path))
        original(path, state)

    monkeypatch.setattr(checkpoints, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        train(toy_split, tmp_path / "run", OPTIONS)
    kept = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["best.pth", "last.pth"]
    assert torch.load(kept / "last.pth", weights_only=True)["meta"]["iteration"] in (5, 10)
    monkeypatch.setattr(checkpoints, "save_checkpoint", original)
    train(toy_split, tmp_path / "run", replace(OPTIONS, resume=True))
    assert torch.load(kept / "last.pth", weights_only=True)["meta"]["iteration"] == 20


@pytest.mark.slow
def test_a_disk_that_takes_no_checkpoint(workspace: Path) -> None:
    """A real limit of the system: no file may grow beyond 200 kB."""
    command = f"ulimit -f 200; exec {sys.executable} -m sslseg {' '.join(SUPERVISED)}"
    done = subprocess.run(["bash", "-c", command], cwd=workspace, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "cannot write runs/supervised-toy-4/checkpoints/best.pth: the file would be larger" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((workspace / "runs" / "supervised-toy-4" / "checkpoints").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(model_files()))
def test_presets_build(toy_split: Split, name: str) -> None:
    from sslseg.registry import MODELS

    config = build_config(toy_split, replace(OPTIONS, model=name, pretrained="none"))
    segmentor = MODELS.build(config.model)
    features = [torch.zeros(1, c, 8, 8) for c in segmentor.decode_head.in_channels] if "segformer" in name else None
    assert segmentor.decode_head.num_classes == 7
    if features is not None:
        assert segmentor.decode_head(features).shape[1] == 7
    with torch.no_grad():
        assert segmentor.eval()(torch.zeros(1, 3, 64, 96)).shape[:2] == (1, 7)


def test_every_head_gets_classes_and_ignore_index() -> None:
    from sslseg.config.files import load_model
    from sslseg.config.fit import fit_model, heads

    model = fit_model(load_model("pspnet_r50").model, num_classes=300, ignore_index=65535)
    assert [(head.num_classes, head.ignore_index) for head in heads(model)] == [(300, 65535)] * 2
    assert model.data_preprocessor.seg_pad_val == 65535
    model = load_model("pspnet_r50").model
    model.decode_head.loss_decode.class_weight = [1.0, 2.0]
    with pytest.raises(UserError, match="class_weight has 2 weights, the dataset 7 classes"):
        fit_model(model, num_classes=7, ignore_index=255)


def test_every_iteration_samples_its_own_numbers() -> None:
    from sslseg.engine.iterations import IterationSeed

    def drawn(seed: int) -> list[float]:
        hook, numbers = IterationSeed(seed), []
        for iteration in range(4):
            hook.before_train_iter(None, iteration)
            numbers.append(torch.rand(()).item())
        return numbers

    assert len(set(drawn(0))) == 4
    assert drawn(0) == drawn(0) != drawn(1)
