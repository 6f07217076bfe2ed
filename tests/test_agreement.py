"""ST++'s ranking of images: snapshots of a training, their agreement in the store, and refining on the best images."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sslseg.config.build import build_config
from sslseg.data.description import DatasetDescription
from sslseg.data.pseudo_masks import PseudoMasks
from sslseg.data.reading import label_table, read_mask
from sslseg.engine.build import stream_loader
from sslseg.engine.iterations import IterationSeed, SyncBuffers
from sslseg.errors import Interrupted, UserError
from sslseg.inference.agreement import mean_iou
from sslseg.refine import find_input, refine
from sslseg.registry import MODELS
from sslseg.split import SplitOptions, make_split
from sslseg.splits.split import Split
from sslseg.store import StoreReader, StoreWriter, verify_store
from sslseg.store.ranking import keep_images
from sslseg.train import TrainOptions, train
from tests.conftest import OPTIONS, SHORT, SUPERVISED, Sslseg, program
from tests.store.test_store import header

SNAPSHOTS = {"schedule.snapshots": [0.25, 0.6]}
KEPT = ("--set", "schedule.snapshots=[0.25,0.6]")
ST_PLUS_PLUS = ("--config", "self-training/default_st_plus_plus", *SHORT)


def slow_mean_iou(mask: np.ndarray, other: np.ndarray) -> float:
    ious = []
    for label in sorted({*mask.ravel().tolist(), *other.ravel().tolist()}):
        both = either = 0
        for first, second in zip(mask.ravel(), other.ravel(), strict=True):
            both += first == label and second == label
            either += first == label or second == label
        ious.append(both / either)
    return sum(ious) / len(ious)


@pytest.fixture(scope="module")
def snapped(tmp_path_factory: pytest.TempPathFactory, toy: DatasetDescription) -> Path:
    """A finished run of 80 iterations that kept snapshots after 20 and 48; copy it before changing it."""
    split = make_split(toy, SplitOptions(count=4))
    options = replace(OPTIONS, iterations=80, batch_size=4, lr=3e-3, val_interval=40, assignments=SNAPSHOTS)
    return train(split, tmp_path_factory.mktemp("snapped") / "run", options).folder


@pytest.fixture
def run(snapped: Path, workspace: Path) -> Path:
    return Path(shutil.copytree(snapped, workspace / "runs" / "supervised-toy-4"))


@pytest.fixture
def store(run: Path, sslseg: Sslseg) -> StoreReader:
    return StoreReader(sslseg("pseudolabel", run, "--agreement", "--workers", "0").path)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_mean_iou_is_over_the_classes_of_either_mask() -> None:
    rng = np.random.default_rng(0)
    for classes in (1, 2, 3, 7):
        mask, other = rng.integers(0, classes, (2, 9, 11))
        other[:, :3] = 0
        found = mean_iou(torch.from_numpy(mask), torch.from_numpy(other), num_classes=8)
        assert found == pytest.approx(slow_mean_iou(mask, other), rel=1e-12)
    same = torch.full((2, 3), 4)
    assert mean_iou(same, same, num_classes=5) == 1.0
    assert mean_iou(same, same * 0, num_classes=5) == 0.0


def test_a_run_keeps_the_weights_of_its_snapshots_and_resumes_to_the_same_files(
    toy_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, iterations=8, val_interval=3, assignments=SNAPSHOTS)
    whole = train(toy_split, tmp_path / "whole", options).checkpoints
    files = ["best.pth", "last.pth", "snapshot-2.pth", "snapshot-5.pth"]
    assert sorted(path.name for path in whole.iterdir()) == files
    assert "optimizer" not in torch.load(whole / "snapshot-2.pth", weights_only=True)
    plain = train(toy_split, tmp_path / "plain", replace(options, assignments={})).checkpoints
    assert sorted(path.name for path in plain.iterdir()) == files[:2]
    assert equal(weights(plain / "last.pth"), weights(whole / "last.pth"))
    original = IterationSeed.after_train_iter

    def interrupt(self, runner, batch_idx, data_batch=None, outputs=None) -> None:  # type: ignore[no-untyped-def]
        original(self, runner, batch_idx, data_batch, outputs)
        if batch_idx + 1 in stops:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(IterationSeed, "after_train_iter", interrupt)
    for stop in (2, 5):
        stops = {stop}
        with pytest.raises(Interrupted, match=f"iteration {stop} of 8"):
            train(toy_split, tmp_path / "parts", replace(options, resume=stop > 2))
        parts = tmp_path / "parts" / "checkpoints"
        assert equal(weights(parts / "last.pth"), weights(parts / f"snapshot-{stop}.pth"))
    stops = set()
    train(toy_split, tmp_path / "parts", replace(options, resume=True))
    for name in files:
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    for before, after in pairwise(["snapshot-2.pth", "snapshot-5.pth", "last.pth"]):
        assert not equal(weights(whole / before), weights(whole / after))


def test_resuming_with_other_snapshots_is_refused(run: Path, sslseg: Sslseg) -> None:
    done = sslseg(*SUPERVISED, *KEPT, "--run-dir", "new")
    assert done.code == 0
    done = sslseg(*SUPERVISED, "--set", "schedule.snapshots=[0.5]", "--run-dir", "new", "--resume")
    assert (done.code, "began with schedule.snapshots" in done.err) == (2, True), done.err


@pytest.mark.parametrize("value", ["0.5", "[5]", "[1.0]", "[0.2,'half']", "[0.0]"])
def test_snapshots_are_fractions(workspace: Path, sslseg: Sslseg, value: str) -> None:
    done = sslseg(*SUPERVISED, "--set", f"schedule.snapshots={value}")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "give fractions of training, such as [0.333,0.667]" in done.err


def test_the_score_is_the_mean_iou_of_the_snapshots_against_the_last_model(
    run: Path, store: StoreReader, sslseg: Sslseg, tmp_path: Path
) -> None:
    def masks(name: str) -> StoreReader:
        out = tmp_path / f"{name}.h5"
        checkpoint = run / "checkpoints" / f"{name}.pth"
        return StoreReader(sslseg("pseudolabel", checkpoint, "--scores", "none", "--workers", "0", "--out", out).path)

    first, second, last = map(masks, ("snapshot-20", "snapshot-48", "last"))
    values = store.image_scores["agreement"]
    assert list(values) == store.ids == list(Split.load(run / "split").unlabeled)
    for name in store.ids:
        pairs = [(snapshot.mask(name), last.mask(name)) for snapshot in (first, second)]
        assert values[name] == np.float32(sum(slow_mean_iou(*pair) for pair in pairs) / 2)
    assert 0 < min(values.values()) < max(values.values()) < 1
    assert store.provenance["agreement"] == dict(snapshots=[20, 48], last=80)
    verify_store(store.path)
    # The masks may be those of another checkpoint: the last model is the reference all the same.
    shutil.copy(run / "checkpoints" / "snapshot-20.pth", run / "checkpoints" / "best.pth")
    other = StoreReader(sslseg("pseudolabel", run, "--agreement", "--workers", "0", "--out", "other.h5").path)
    assert np.array_equal(other.mask(other.ids[0]), first.mask(other.ids[0]))
    assert other.image_scores == store.image_scores


def test_a_plain_store_is_what_it_was(run: Path, store: StoreReader, sslseg: Sslseg) -> None:
    plain = StoreReader(sslseg("pseudolabel", run, "--workers", "0", "--out", "plain.h5").path)
    assert (plain.kinds, plain.image_scores) == (store.kinds, {})
    assert "agreement" not in plain.provenance
    for name in plain.ids:
        for kind in plain.kinds:
            assert np.array_equal(plain.stored(kind, name), store.stored(kind, name))


def test_shards_and_a_resumed_command_give_the_single_store(run: Path, store: StoreReader, sslseg: Sslseg) -> None:
    label = ("pseudolabel", run, "--agreement", "--workers", "0")
    shards = [sslseg(*label, "--shard", f"{number}/2").path for number in range(2)]
    merged = sslseg("merge", *shards, "--out", "merged.h5").path
    assert merged.read_bytes() == store.path.read_bytes()
    original, calls = StoreWriter.add, []

    def fail(self, name, *own, **maps):  # type: ignore[no-untyped-def]
        calls.append(name)
        if len(calls) == 6:
            raise KeyboardInterrupt
        original(self, name, *own, **maps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "add", fail)
        assert sslseg(*label, "--out", "parts.h5").code == 130
    assert sslseg(*label, "--out", "parts.h5", "--resume").path.read_bytes() == store.path.read_bytes()


@pytest.mark.slow
def test_two_ranks_store_the_same_scores(run: Path, store: StoreReader, workspace: Path) -> None:
    two = program("pseudolabel", run, "--agreement", "--out", "two.h5", cwd=workspace, ranks=2)
    assert two.code == 0, two.err
    assert (workspace / "two.h5").read_bytes() == store.path.read_bytes()


@pytest.mark.slow
def test_two_ranks_keep_one_set_of_snapshots(workspace: Path) -> None:
    done = program(*SUPERVISED, *KEPT, "--iterations", "5", "--batch-size", "4", cwd=workspace, ranks=2)
    assert done.code == 0, done.err
    folder = workspace / done.out.strip() / "checkpoints"
    assert sorted(path.name for path in folder.glob("snapshot-*")) == ["snapshot-1.pth", "snapshot-3.pth"]


def test_ranks_average_their_buffers_before_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    hook = SyncBuffers(4, [3])
    for index in range(6):
        monkeypatch.setattr(hook, "sync", lambda runner, done=index + 1: synced.append(done))
        hook.after_train_iter(SimpleNamespace(val_loop=None, train_loop=None), index)  # type: ignore[arg-type]
    assert synced == [3, 4]


def scored(path: Path, values: dict[str, float]) -> StoreReader:
    with StoreWriter(path, header=header(len(values)), ids=list(values), image_scores=["agreement"]) as writer:
        for name, value in values.items():
            writer.add(name, dict(agreement=value), mask=np.zeros((2, 2), np.uint8))
    return StoreReader(writer.finalize())


def test_the_best_images_are_kept_and_ties_follow_the_ids(tmp_path: Path) -> None:
    store = scored(tmp_path / "s.h5", dict(e=0.5, a=0.1, d=0.5, b=0.9, c=0.5, z=1.0))
    names = list("edcba")
    best = keep_images(0.6, store, names)
    assert (best.kept, best.left_out) == (("b", "c", "d"), frozenset("ae"))
    assert (best.threshold, best.tied) == (0.5, True), "e agrees as much as d"
    assert not keep_images(0.8, store, names).tied
    assert not keep_images(0.2, store, names).tied
    assert keep_images(0.5, store, reversed(names)).kept == ("b", "c")  # two and a half
    assert keep_images(0.01, store, names).kept == ("b",)
    assert keep_images(1, store, names).left_out == frozenset()
    hundred = scored(tmp_path / "t.h5", {f"{number:03}": number / 100 for number in range(100)})
    assert len(keep_images(0.29, hundred, hundred.ids).kept) == 29
    for wrong in (0, -0.5, 1.5, float("nan")):
        with pytest.raises(UserError, match="is not a fraction of the images"):
            keep_images(wrong, store, names)


def masks_without(store: StoreReader, split: Split, fraction: float) -> PseudoMasks:
    return PseudoMasks(store, images=keep_images(fraction, store, split.unlabeled))


@pytest.mark.parametrize("method", ["self-training", "three-stage"])
def test_the_other_unlabeled_images_are_in_no_stream(run: Path, sslseg: Sslseg, toy_split: Split, method: str) -> None:
    store = StoreReader(sslseg("pseudolabel", run, "--agreement", "--subset", "train", "--workers", "0").path)
    masks = masks_without(store, toy_split, 0.5)
    order = sorted(toy_split.unlabeled, key=lambda name: (-store.image_scores["agreement"][name], name))
    assert (list(masks.images.kept), masks.left_out) == (order[:6], frozenset(order[6:]))  # type: ignore[union-attr]
    config = build_config(toy_split, replace(OPTIONS, method=method))
    model = MODELS.build(dict(config.method, segmentor=config.model))
    loader = stream_loader(toy_split, config, model, masks)
    found = dict(zip(loader.dataset.names, loader.dataset.samples, strict=True))
    expected = {"labeled": {*toy_split.labeled}, "unlabeled": {*order[:6]}, "train": {*toy_split.labeled, *order[:6]}}
    assert found.keys() == model.views.keys()
    for name, samples in found.items():
        assert {sample.id for sample in samples} == expected[name], name


def test_what_is_stored_of_the_other_images_changes_nothing(
    run: Path, store: StoreReader, workspace: Path, toy_split: Split
) -> None:
    changed = workspace / "changed.h5"
    dropped = masks_without(store, toy_split, 0.5).left_out
    arguments = dict(header=store.header, ids=store.ids, kinds=store.kinds, image_scores=["agreement"])
    with StoreWriter(changed, **arguments) as writer:  # type: ignore[arg-type]
        for name in store.ids:
            maps = {kind: store.score(kind, name) for kind in store.scores}
            mask = store.mask(name)
            own = dict(agreement=store.image_scores["agreement"][name])
            writer.add(name, own, mask=(mask + 1) % 7 if name in dropped else mask, **maps)
    writer.finalize()
    options = TrainOptions(epochs=1, batch_size=2, workers=0)
    runs = []
    for path in (store.path, changed):
        given = replace(find_input(run), store=StoreReader(path))
        folder = workspace / path.stem
        runs.append(refine(given, toy_split, folder, options, method="self-training", images=0.5, workers=0))
    left, right = (weights(one.checkpoints / "last.pth") for one, _ in runs)
    assert equal(left, right)
    record = runs[0][0].read()
    # An epoch is a pass over the six images that are left.
    assert (record["iterations"], record["pseudo_masks"]["images"]) == (
        3,
        dict(score="agreement", fraction=0.5, kept=6, of=12),
    )
    # The run inherits the schedule, and so keeps snapshots, too; its store rates the images again.
    after = StoreReader(runs[0][1])
    assert after.ids == store.ids
    assert after.provenance["agreement"] == dict(snapshots=[1, 2], last=3)
    assert after.provenance["learned_from"]["images"]["kept"] == 6


@pytest.mark.slow
def test_the_commands_of_st_plus_plus(workspace: Path, sslseg: Sslseg) -> None:
    run = sslseg(*SUPERVISED, *KEPT).path
    labels = sslseg("pseudolabel", run, "--agreement", "--workers", "0").path
    half = sslseg("refine", labels, *ST_PLUS_PLUS, "--keep-images", "0.5", "--run-dir", "runs/half")
    assert "--keep-images 0.5: 6 of 12 unlabeled images" in half.err
    whole = sslseg("refine", half.path, *ST_PLUS_PLUS)
    assert whole.path == Path("runs/self-training-half")
    assert (StoreReader(half.path / "stores" / "unlabeled.h5").image_scores, len(StoreReader(labels))) == ({}, 12)
    assert sslseg("eval", whole.path, "--workers", "0").code == 0
    again = sslseg("refine", labels, *ST_PLUS_PLUS, "--keep-images", "0.6", "--run-dir", "runs/half", "--resume")
    assert (again.code, "began with pseudo_masks.images.fraction = 0.5" in again.err) == (2, True), again.err


def test_inspect_shows_the_ranking_and_eval_whether_it_is_right(store: StoreReader, run: Path, sslseg: Sslseg) -> None:
    values = store.image_scores["agreement"]
    record = json.loads(sslseg("inspect", store.path, "--json").out)
    assert record["agreement_mean"] == pytest.approx(np.mean(list(values.values())))
    order = sorted(values, key=lambda name: (-values[name], name))
    assert list(record["agreement_highest"]) == order[:5]
    assert list(record["agreement_lowest"]) == order[:-6:-1]
    assert record["agreement_lowest"][order[-1]] == round(values[order[-1]], 4)
    done = sslseg("eval", store.path, "--json")
    scores = json.loads(done.out)["agreement"]
    split = Split.load(run / "split")
    table = label_table(split.dataset)
    truth = {sample.id: read_mask(str(sample.mask), table) for sample in split.samples("unlabeled")}
    for half, names in (("best_half", order[:6]), ("rest", order[6:])):
        mask = np.concatenate([store.mask(name).ravel() for name in names])
        label = np.concatenate([truth[name].ravel() for name in names])
        assert scores[half] == pytest.approx(100 * slow_mean_iou(mask[label != 255], label[label != 255]))
    assert f"highest agreement {scores['best_half']:.2f}, of the other half {scores['rest']:.2f}" in done.err


def test_bad_input_is_one_clear_line(
    run: Path, store: StoreReader, trained: Path, sslseg: Sslseg, tmp_path: Path
) -> None:
    shutil.copy(run / "checkpoints" / "best.pth", tmp_path / "alone.pth")
    plain = sslseg("pseudolabel", run, "--workers", "0", "--out", "plain.h5").path
    refining = ("refine", "--method", "self-training", "--iterations", "1", "--keep-images")
    label = ("pseudolabel", "--agreement", "--workers", "0")
    cases = {
        (*label, trained): "kept no snapshots; train again with --set 'schedule.snapshots=[0.333,0.667]'",
        (*label, tmp_path / "alone.pth", "--split", run / "split"): "does not lie in a run directory",
        (*label, run, "--out", plain, "--resume"): "is finished and holds no agreement",
        (*refining, "0.5", plain): "holds no agreement of its images; make one with `sslseg pseudolabel --agreement`",
        (*refining, "50", store.path): "--keep-images 50 is not a fraction",
    }
    for arguments, message in cases.items():
        done = sslseg(*arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
        assert message in done.err
    (run / "checkpoints" / "snapshot-48.pth").unlink()
    assert "snapshot-48.pth is gone" in sslseg(*label, run, "--out", "x.h5").err
    shutil.copy(run / "checkpoints" / "snapshot-20.pth", run / "checkpoints" / "last.pth")
    assert "has done 20 of 80 iterations; finish it with" in sslseg(*label, run, "--out", "x.h5").err
