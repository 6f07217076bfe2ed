"""Stages by stages: what refine takes, writes and refuses, and that it can be stopped anywhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from sslseg.config.build import TrainOptions, build_config
from sslseg.data.precision import FEWEST
from sslseg.data.pseudo_masks import PseudoMasks
from sslseg.data.reading import label_table, read_mask
from sslseg.errors import Interrupted
from sslseg.inference import Protocol, with_tta
from sslseg.refine import find_input, refine
from sslseg.registry import MODELS
from sslseg.splits.split import Split
from sslseg.store import StoreReader
from sslseg.store.filters import resolve
from tests.conftest import OPTIONS, SHORT, SUPERVISED, Sslseg, program


@pytest.fixture
def first(workspace: Path, trained: Path, sslseg: Sslseg) -> Path:
    """Stage 1 in the working folder: a run with a store of all its training images."""
    run = workspace / "runs" / "supervised-toy-4"
    shutil.copytree(trained, run)
    assert sslseg("pseudolabel", run, "--subset", "train", "--workers", "0").code == 0
    return run


def weights(run: Path, name: str = "last.pth") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"]


@pytest.mark.slow
def test_stages_follow_each_other(first: Path, sslseg: Sslseg) -> None:
    done = sslseg("refine", "--iterations", "3", "--workers", "0")
    assert done.path == Path("runs/stage2-toy-4")
    record = json.loads((done.path / "run.json").read_text())
    assert (record["method"], record["stage"], record["status"]) == ("ThreeStage", 2, "finished")
    assert record["store"].endswith("supervised-toy-4/stores/train.h5")
    third = sslseg("refine", done.path, "--iterations", "3", "--json")
    record = json.loads(third.out)
    assert record["stage"] == 3
    assert record["path"] == "runs/stage3-toy-4"
    stores = [StoreReader(path) for path in (first / "stores/train.h5", done.path / "stores/train.h5", record["store"])]
    assert stores[0].ids == stores[1].ids == stores[2].ids
    assert stores[2].provenance["stage"] == 3
    assert stores[2].provenance["learned_from"] == dict(content_sha256=stores[1].content_sha256, keep=[])
    assert sslseg("eval", record["path"]).code == 0
    fourth = sslseg("refine", record["path"], "--dry-run")
    assert fourth.path == Path("runs/stage4-toy-4")
    assert not fourth.path.exists()


def test_a_stage_inherits_what_the_run_before_was_trained_with(first: Path, sslseg: Sslseg) -> None:
    from sslseg.config.files import load

    before = load(first / "config.py")
    after = load(sslseg("refine", "--iterations", "2", "--lr", "1e-4").path / "config.py")
    assert after.schedule.iterations == 2
    assert after.optimizer.lr == 1e-4
    assert before.optimizer.lr == 3e-3
    for key in ("model", "data", "evaluation"):
        assert after[key] == before[key]
    assert [transform["type"] for transform in after.views.strong] == ["RandAugment", "RandomCutouts"]


@pytest.mark.slow
def test_each_stage_begins_with_initial_weights_and_the_plain_segmentor_remains(first: Path, sslseg: Sslseg) -> None:
    run = sslseg("refine", "--iterations", "1", "--lr", "1e-12").path
    begun, before = weights(run), weights(first)
    name = "student.backbone.layer3.0.conv1.weight"
    assert not torch.allclose(begun[name], before[name])
    exported = sslseg("export", run, "--out", "exported").path
    plain = sslseg("export", first, "--out", "plain").path
    states = [torch.load(next(path.glob("*.pth")), weights_only=True)["state_dict"] for path in (exported, plain)]
    assert {key: value.shape for key, value in states[0].items()} == {
        key: value.shape for key, value in states[1].items()
    }


def test_every_stage_begins_with_the_file_of_the_first(workspace: Path, sslseg: Sslseg, toy_split: Split) -> None:
    torch.save(MODELS.build(build_config(toy_split, OPTIONS).model).backbone.state_dict(), workspace / "mine.pth")
    short = (*SHORT, "--iterations", "1", "--lr", "1e-12")
    run = sslseg("train", "--method", "supervised", *short, "--pretrained", "mine.pth").path
    assert sslseg("pseudolabel", run, "--subset", "train", "--workers", "0").code == 0
    second = sslseg("refine", run, *short, "--set", "method.consistency_weight=0")
    assert f"encoder weights: {workspace / 'mine.pth'}, 132 of the backbone's 132 tensors" in second.err
    third = sslseg("refine", second.path, "--workers", "0", "--iterations", "1")
    for done, number in ((second, 2), (third, 3)):
        assert "warning" not in done.err
        record = json.loads((done.path / "run.json").read_text())
        assert record["pretrained"] == "mine.pth"
        assert record["pretrained_by_run"] == ["mine.pth"] * number
    source = torch.load("mine.pth", weights_only=True)
    state = weights(second.path)
    torch.testing.assert_close(state["student.backbone.stem.0.weight"], source["stem.0.weight"], rtol=0, atol=1e-6)
    others = ("refine", run, *short, "--dry-run")
    for flags, now in (
        (["--pretrained", "none"], "random"),
        (["--model", "deeplabv3plus_lite0"], "package://efficientnet_lite0"),
    ):
        done = sslseg(*others, *flags)
        assert f"warning: the run before began with encoder weights mine.pth, this one with {now}" in done.err
    (workspace / "mine.pth").unlink()
    assert "encoder weights mine.pth, this one with random" in sslseg(*others).err


def test_a_stage_after_random_weights_is_random_unless_its_model_changes(workspace: Path, sslseg: Sslseg) -> None:
    """The preset names weights; the stage before left them out."""
    short = (*SHORT, "--model", "deeplabv3plus_lite0", "--iterations", "1", "--crop", "64")
    run = sslseg("train", "--method", "supervised", *short, "--pretrained", "none").path
    assert sslseg("pseudolabel", run, "--subset", "train", "--workers", "0").code == 0
    for flags in ([], ["--model", "deeplabv3plus_lite0"]):
        done = sslseg("refine", run, "--dry-run", *flags)
        assert (done.code, "warning" in done.err) == (0, False)
    done = sslseg("refine", run, "--dry-run", "--model", "deeplabv3plus_lite1", "--stage", "3")
    assert "encoder weights random, this one with package://" in done.err


def test_refining_from_a_file_that_the_config_names_is_not_noted(
    workspace: Path, sslseg: Sslseg, toy_split: Split
) -> None:
    torch.save(MODELS.build(build_config(toy_split, OPTIONS).model).backbone.state_dict(), workspace / "mine.pth")
    setting = "model.backbone.init_cfg={'type': 'Pretrained', 'checkpoint': 'mine.pth'}"
    run = sslseg(*SUPERVISED, "--set", setting).path
    assert sslseg("pseudolabel", run, "--subset", "train", "--workers", "0").code == 0
    done = sslseg("refine", run, "--iterations", "2")
    assert "encoder weights: mine.pth, 132 of the backbone's 132 tensors" in done.err
    assert "warning" not in done.err


def test_the_checkpoint_that_predicts_is_said_and_recorded(first: Path, sslseg: Sslseg) -> None:
    for flags, which in ((["--checkpoint", "last"], "last"), ([], "best")):
        done = sslseg("refine", first, "--iterations", "2", "--run-dir", which, *flags)
        assert ("labels of validation images chose it" in done.err) is (which == "best")
        assert json.loads((done.path / "run.json").read_text())["store_checkpoint"] == which
        assert StoreReader(done.path / "stores" / "train.h5").provenance["checkpoint"].endswith(f"/{which}.pth")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        (["--set", "method.consistency_weight=0.0"], {"method.consistency_weight": 0.0}),
        (["--set", "method.pseudo_weight=0.0"], {"method.pseudo_weight": 0.0}),
        (["--set", "views.strong=[]"], {"views.strong": []}),
        (["--stage", "3", "--set", "method.branch=g-hat"], {"method.stage": 3, "method.branch": "g-hat"}),
        (["--set", "method.decays=[]"], {"method.decays": []}),
        (["--set", "method.pseudo_weight=0.1"], {"method.pseudo_weight": 0.1}),
    ],
)
def test_every_row_of_tables_v_and_vi_has_a_setting(first: Path, sslseg: Sslseg, flags: list, changed: dict) -> None:
    from sslseg.config.assignments import flattened
    from sslseg.config.files import load

    config = load(sslseg("refine", "--iterations", "1", *flags).path / "config.py").to_dict()
    for key, value in changed.items():
        node = config
        for part in key.split("."):
            node = node[part]
        assert node == value, flattened(config["method"])


@pytest.mark.slow
def test_labels_of_unlabeled_images_are_never_read(
    first: Path, sslseg: Sslseg, toy_folder: Path, tmp_path: Path
) -> None:
    """With the masks of the unlabeled part gone from the disk, the same weights come out."""
    bare = tmp_path / "bare"
    shutil.copytree(toy_folder, bare)
    split = Split.load(first / "split")
    with_masks = sslseg("refine", "--iterations", "3", "--run-dir", "with").path
    for sample in split.samples("unlabeled"):
        (bare / Path(str(sample.mask)).relative_to(toy_folder)).unlink()
    without = sslseg("refine", first, "--iterations", "3", "--run-dir", "without", "--data", bare).path
    left, right = weights(with_masks), weights(without)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_keep_takes_the_pixels_it_names(first: Path, sslseg: Sslseg) -> None:
    store = StoreReader(first / "stores" / "train.h5")
    entropy = np.concatenate([store.entropy(name).ravel() for name in store.ids])
    confident, low = resolve(["confidence>=0.5", "entropy<q30"], store)
    assert low.threshold == pytest.approx(np.sort(entropy)[int(np.ceil(0.3 * entropy.size)) - 1])
    assert low.share == pytest.approx((entropy < low.threshold).mean())
    assert abs(low.share - 0.3) < 0.01
    shares = [(store.confidence(name) >= 0.5).mean() for name in store.ids]
    assert confident.share == pytest.approx(np.mean(shares))
    run = sslseg("refine", "--iterations", "1", "--keep", "entropy<q30", "--keep", "confidence>=0.5")
    assert "--keep entropy<q30: " in run.err
    learned = StoreReader(run.path / "stores" / "train.h5").provenance["learned_from"]
    assert [entry["keep"] for entry in learned["keep"]] == ["entropy<q30", "confidence>=0.5"]
    assert learned["keep"][0]["threshold"] == pytest.approx(low.threshold)


def test_a_student_of_a_marked_store_learns_from_its_reliable_pixels(first: Path, sslseg: Sslseg) -> None:
    assert sslseg("pseudolabel", first, "--subset", "train", "--resume", "--reliability", "q60").code == 0
    store = StoreReader(first / "stores" / "train.h5")
    name = store.ids[0]
    mask = store.mask(name)
    learned = PseudoMasks(store).read(name, mask.shape)
    assert np.array_equal(learned, store.stored("reliable_masks", name))
    assert not np.array_equal(learned, mask)
    run = sslseg("refine", first, "--iterations", "1")
    assert run.path.name.startswith("self-training-")
    scores = json.loads(sslseg("eval", store.path, "--json").out)
    entropies = [store.entropy(name) for name in store.ids]
    limit = store.provenance["reliable"]["threshold"]
    split = Split.load(first / "split")
    masks = {sample.id: sample.mask for sample in split.samples("all")}
    truth = {name: read_mask(str(masks[name]), label_table(split.dataset)) for name in store.ids}
    known = [truth[name] != store.ignore_index for name in store.ids]
    kept = [(entropy < limit) & there for entropy, there in zip(entropies, known, strict=True)]
    right = [(store.mask(name) == truth[name]) for name in store.ids]
    number = sum(k.sum() for k in kept)
    assert scores["reliable"]["share"] == pytest.approx(100 * number / sum(k.sum() for k in known))
    accuracy = sum((k & r).sum() for k, r in zip(kept, right, strict=True)) / number
    assert scores["reliable"]["aAcc"] == pytest.approx(100 * accuracy)


def test_filters_drop_pixels_of_the_mask(first: Path) -> None:
    from sslseg.data.pseudo_masks import PseudoMasks

    store = StoreReader(first / "stores" / "train.h5")
    (kept,) = resolve(["entropy<q30"], store)
    name = store.ids[3]
    expected = np.where(store.entropy(name) < np.float32(kept.threshold), store.mask(name), 255)
    read = PseudoMasks(store, [kept]).read(name, store.mask(name).shape)
    np.testing.assert_array_equal(read, expected)
    assert 0 < (read == 255).mean() < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "sharpness>1"], "'confidence>0.9' or 'entropy<q80'"),
        (["--keep", "entropy<1.5"], "between 0 and 1"),
        (["--keep", "entropy<q120"], "between 0 and 100"),
        (["--keep", "confidence>1.0"], "keeps no pixel"),
        (["--keep", "confidence>0..9"], "is not a number"),
        (["--stage", "1"], "stage 1 is `sslseg train --method supervised`"),
        (["--set", "method.branch=g-bar"], "g-hat, g-tilde"),
        (["--checkpoint", "first"], "best or last"),
        (["splits/toy-4"], "is a split"),
        (["nowhere.h5"], "does not exist"),
    ],
)
def test_bad_input_is_one_clear_line(first: Path, sslseg: Sslseg, arguments: list, message: str) -> None:
    done = sslseg("refine", *arguments, "--iterations", "1")
    assert done.code == 2
    assert message in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("error:")]) == 1
    assert "Traceback" not in done.err


def test_stores_that_do_not_cover_the_split_are_refused(
    first: Path, sslseg: Sslseg, workspace: Path, toy_folder: Path
) -> None:
    assert sslseg("pseudolabel", first, "--subset", "val", "--workers", "0", "--out", "val.h5").code == 0
    done = sslseg("refine", "val.h5", "--iterations", "1")
    assert (done.code, "lacks 12 of 12 unlabeled images" in done.err) == (2, True), done.err
    sslseg("pseudolabel", first, "--images", toy_folder / "images", "--workers", "0", "--out", "folder.h5")
    done = sslseg("refine", "folder.h5", "--iterations", "1")
    assert (done.code, "which is not an image of the split" in done.err) == (2, True), done.err
    sslseg("split", "--count", "8", "--data", toy_folder, "--out", "other")
    done = sslseg("refine", first, "--split", "other", "--iterations", "1")
    assert (done.code, "another split" in done.err) == (2, True), done.err
    shutil.rmtree(first / "stores")
    done = sslseg("refine", first, "--iterations", "1")
    assert (done.code, "has no store yet" in done.err) == (2, True), done.err


@pytest.mark.slow
def test_a_store_of_the_unlabeled_part_will_do_and_says_what_is_missing(first: Path, sslseg: Sslseg) -> None:
    assert sslseg("pseudolabel", first, "--workers", "0").code == 0
    done = sslseg("refine", first / "stores" / "unlabeled.h5", "--iterations", "1")
    assert "no masks of 4 labeled images" in done.err
    assert len(StoreReader(done.path / "stores" / "unlabeled.h5")) == 12


def test_training_the_method_directly_names_the_right_command(workspace: Path, sslseg: Sslseg) -> None:
    done = sslseg("train", "--method", "three-stage", *SHORT)
    assert (done.code, "sslseg refine STORE" in done.err) == (2, True)


@pytest.mark.slow
def test_stopped_and_resumed_equals_uninterrupted(
    first: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sslseg.engine.iterations import IterationSeed
    from sslseg.store.writer import StoreWriter

    options = TrainOptions(iterations=12, workers=1, val_interval=5)
    split, given = Split.load(first / "split"), find_input(first)
    whole, _ = refine(given, split, workspace / "whole", options, stage=2)

    def interrupt(
        self: IterationSeed, runner: object, batch_idx: int, data_batch: object, outputs: object = None
    ) -> None:
        if batch_idx + 1 == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(IterationSeed, "after_train_iter", interrupt)
        with pytest.raises(Interrupted, match="iteration 7 of 12"):
            refine(given, split, workspace / "parts", options, stage=2)
    resumed = TrainOptions(iterations=12, workers=1, val_interval=5, resume=True)
    original = StoreWriter.add

    def fail(self: StoreWriter, name: str, scores: dict[str, float], **maps: np.ndarray) -> None:
        if len(self.done) == 0 and name == given.store.ids[9]:
            raise KeyboardInterrupt
        original(self, name, scores, **maps)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "add", fail)
        with pytest.raises(Interrupted, match="unfinished"):
            refine(given, split, workspace / "parts", resumed, stage=2)
    parts, store = refine(given, split, workspace / "parts", resumed, stage=2)
    for name in ("last.pth", "best.pth"):
        assert (parts.checkpoints / name).read_bytes() == (whole.checkpoints / name).read_bytes()
    assert StoreReader(store).content_sha256 == StoreReader(whole.stores / "train.h5").content_sha256
    times = [path.stat().st_mtime_ns for path in (store, parts.checkpoints / "last.pth")]
    refine(given, split, workspace / "parts", resumed, stage=2)
    assert times == [path.stat().st_mtime_ns for path in (store, parts.checkpoints / "last.pth")]


@pytest.mark.parametrize(
    "protocol",
    [
        Protocol(),
        Protocol("slide", (64, 96)),
        Protocol("slide", (64, 96), (30, 50)),
        Protocol("center-crop", (5, 6)),
        with_tta(Protocol("slide", (64, 96))),
        Protocol(scales=(0.5, 1.0)),
    ],
)
def test_a_written_protocol_can_be_read_back(protocol: Protocol) -> None:
    assert Protocol.parse(str(protocol)) == protocol


@pytest.mark.slow
def test_the_whole_pipeline_in_a_shell_and_on_two_ranks(workspace: Path) -> None:
    train = program(*SUPERVISED, cwd=workspace)
    store = program("pseudolabel", "-", "--subset", "all", "--workers", "0", cwd=workspace, stdin=train.out)
    second = program("refine", "-", "--stage", "2", "--workers", "0", cwd=workspace, stdin=store.out)
    source = second.out.strip()  # several processes cannot share one standard input
    third = program("refine", source, "--stage", "3", "--workers", "0", cwd=workspace, ranks=2)
    scores = program("eval", "-", "--workers", "0", cwd=workspace, stdin=third.out)
    for done in (train, store, second, third, scores):
        assert done.code == 0, done.err
    assert "mIoU" in json.loads((workspace / scores.out.strip()).read_text())
    assert (
        StoreReader(workspace / third.out.strip() / "stores" / "all.h5").ids
        == StoreReader(workspace / store.out.strip()).ids
    )


def test_thresholds_by_class_come_from_held_out_labels(first: Path, sslseg: Sslseg, toy_split: Split) -> None:
    held_out = sslseg("pseudolabel", first, "--subset", "val", "--workers", "0").path
    options = ("--keep-precise", "0.6", "--held-out", held_out)
    done = sslseg("refine", first / "stores" / "train.h5", *SHORT[2:], "--method", "self-training", *options)
    assert done.code == 0, done.err
    assert "confidence by class: background " in done.err
    assert "validation images chose these thresholds" in done.err
    kept = json.loads((done.path / "run.json").read_text())["pseudo_masks"]["keep"][0]
    assert kept["keep"] == "precision>=0.6"
    assert 0 < kept["share"] < 1
    # Slowly: of the held-out pixels of each class that pass its threshold, at least six in ten are right.
    store, table = StoreReader(held_out), label_table(toy_split.dataset)
    pixels = [
        (store.mask(sample.id), store.stored("confidence", sample.id), read_mask(sample.mask, table))
        for sample in toy_split.samples("val")
    ]
    for c, threshold in enumerate(kept["thresholds"]):
        passing = np.concatenate(
            [(mask == label)[(mask == c) & (levels >= threshold)] for mask, levels, label in pixels]
        )
        all_of_class = sum(int((mask == c).sum()) for mask, _, _ in pixels)
        assert all_of_class < FEWEST or len(passing) == 0 or passing.mean() >= 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--keep-precise", "0.9"), "add --held-out STORE"),
        (("--held-out", "STORE"), "add --keep-precise"),
        (("--keep-precise", "0.9", "--held-out", "STORE"), "is a training image"),
        (("--keep-precise", "1.5", "--held-out", "STORE"), "not a fraction"),
    ],
)
def test_thresholds_need_held_out_images(first: Path, sslseg: Sslseg, options: tuple, message: str) -> None:
    store = first / "stores" / "train.h5"
    done = sslseg(
        "refine", store, "--method", "self-training", *(store if part == "STORE" else part for part in options)
    )
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert message in done.err
