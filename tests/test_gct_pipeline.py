"""train --method gct, pseudolabel, refine, eval: what each step writes and refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslseg.config.build import TrainOptions, build_config
from sslseg.config.files import load
from sslseg.data.description import DatasetDescription
from sslseg.data.pseudo_masks import PseudoMasks
from sslseg.errors import UserError
from sslseg.split import SplitOptions, make_split
from sslseg.splits.split import Split
from sslseg.store import StoreReader, verify_store
from sslseg.store.filters import resolve
from tests.conftest import SHORT, SUPERVISED, Sslseg
from tests.methods.conftest import build

KINDS = ("masks", "confidence", "flaw_maps/left", "flaw_maps/right", "model_masks/left", "model_masks/right")


@pytest.fixture
def run(workspace: Path, sslseg: Sslseg) -> Path:
    return sslseg("train", "--method", "gct", *SHORT).path


def test_the_detector_can_learn_from_strong_views(workspace: Path, sslseg: Sslseg) -> None:
    run = sslseg("train", "--config", "gct/default_strong", *SHORT, "--set", "method.cross_fit=0.5").path
    assert load(run / "config.py").method.detector_view == "strong"
    curves = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss_detector"] for record in curves if "loss_detector" in record]
    assert (losses[0] > 0, losses[-1]) == (True, 0.0)


@pytest.mark.slow
def test_the_steps_follow_each_other(run: Path, sslseg: Sslseg) -> None:
    path = sslseg(
        "pseudolabel", "--scores", "confidence,flaw,model_masks", "--workers", "0", "--export-png", "pictures"
    ).path
    store = StoreReader(path)
    assert tuple(store.kinds) == KINDS
    assert store.scores == ("confidence", "flaw")
    assert verify_store(path)["kinds"] == list(KINDS)
    name = store.ids[0]
    left, right = (store.score(f"flaw_maps/{side}", name) for side in ("left", "right"))
    assert np.array_equal(store.score("flaw", name), np.minimum(left, right))
    masks = [store.stored(f"model_masks/{side}", name) for side in ("left", "right")]
    assert ((store.mask(name) == masks[0]) | (store.mask(name) == masks[1])).all()
    assert np.array_equal(store.mask(name)[left < right], masks[0][left < right])
    for picture in ("masks/{}.png", "overlays/{}.jpg", "flaw_maps/left/{}.jpg", "model_masks/right/{}.png"):
        assert (Path("pictures") / picture.format(name)).exists()
    scores = json.loads(sslseg("eval", path, "--figures", "figures", "--json").out)
    assert set(scores["error_detection"]) == {"confidence", "flaw"}
    assert 0 <= scores["error_detection"]["flaw"]["auroc"] <= 1
    assert next(Path("figures").glob("0*.png")).exists()

    done = sslseg("refine", path, "--keep", "flaw<=q50", "--iterations", "2")
    assert done.path == Path("runs/self-training-toy-4")
    record = json.loads((done.path / "run.json").read_text())
    assert (record["method"], "stage" in record) == ("SelfTraining", False)
    assert StoreReader(done.path / "stores" / "unlabeled.h5").kinds.keys() == {"masks", "confidence"}
    assert load(done.path / "config.py").pseudo_masks.keep[0].keep == "flaw<=q50"
    assert sslseg("eval", done.path).code == 0
    # A student has no flaw maps; the stages can follow it, or any other store.
    assert sslseg("refine", done.path, "--dry-run").path == Path("runs/stage2-toy-4")
    assert sslseg("refine", path, "--stage", "2", "--dry-run").code == 0


def test_pixels_weigh_what_the_flaw_maps_leave(run: Path, toy_split: Split, sslseg: Sslseg) -> None:
    store = StoreReader(sslseg("pseudolabel", "--workers", "0").path)
    assert tuple(store.kinds) == ("masks", "confidence", "entropy", "flaw_maps/left", "flaw_maps/right")
    name = store.ids[0]
    shape = store.mask(name).shape
    for score, expected in (("flaw", 1 - store.score("flaw", name)), ("confidence", store.confidence(name))):
        weights = PseudoMasks(store, weight=score).read_weight(name, shape) / 65535
        np.testing.assert_allclose(weights, expected, atol=1e-6)
    threshold = float(np.median(store.score("flaw", name)))
    mask = PseudoMasks(store, resolve([f"flaw<={threshold:.4f}"], store)).read(name, shape)
    assert np.array_equal(mask == 255, ~(store.score("flaw", name) <= np.float32(f"{threshold:.4f}")))
    done = sslseg("refine", "--weight", "flaw", "--iterations", "2").path
    assert load(done / "config.py").pseudo_masks.weight == "flaw"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--weight", "flaw", "--stage", "2"), "--weight needs a method without stages"),
        (("--set", "method.decays=[]"), "method.decays is not a setting of SelfTraining"),
        (("--weight", "depth"), "holds confidence, entropy, flaw"),
        (("--keep", "flaw<0"), "keeps no pixel"),
        (("--keep", "flow<0.6"), "confidence, entropy, flaw"),
    ],
)
def test_what_does_not_fit_is_one_line(run: Path, sslseg: Sslseg, arguments: tuple[str, ...], message: str) -> None:
    assert sslseg("pseudolabel", "--workers", "0").code == 0
    done = sslseg("refine", *arguments)
    assert done.code == 2
    assert message in done.err.splitlines()[-1]
    assert not Path("runs/self-training-toy-4").exists()


def test_a_model_without_a_detector_gives_no_flaw(workspace: Path, sslseg: Sslseg) -> None:
    assert sslseg(*SUPERVISED).code == 0
    done = sslseg("pseudolabel", "--scores", "flaw")
    assert done.code == 2
    assert "the model does not give it; it gives confidence, entropy" in done.err
    detector = sslseg("train", "--config", "mean-teacher/default_flaw_detector", *SHORT).path
    assert "detector.layers.0.weight" in torch.load(detector / "checkpoints/last.pth", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_two_architectures_and_the_exported_left_one(workspace: Path, sslseg: Sslseg) -> None:
    run = sslseg("train", "--method", "gct", *SHORT, "--pretrained", "none", "--set", "method.right=segformer_b0").path
    assert sslseg("pseudolabel", run, "--workers", "0").code == 0
    assert sslseg("eval", run).code == 0
    state = torch.load(sslseg("export", run, "--out", "plain").path / "model.pth", weights_only=True)["state_dict"]
    whole = torch.load(run / "checkpoints" / "best.pth", weights_only=True)["state_dict"]
    assert {name for name in whole if name.startswith("student.")} == {f"student.{name}" for name in state}
    assert any(name.startswith("right.backbone.layers") for name in whole)


@pytest.mark.parametrize("method", ["gct", "mean-teacher"])
def test_a_split_without_unlabeled_images_is_one_clear_line(
    workspace: Path, toy: DatasetDescription, sslseg: Sslseg, method: str
) -> None:
    make_split(toy, SplitOptions(count=16)).save(Path("splits/full"))
    done = sslseg("train", "--split", "splits/full", "--method", method, *SHORT)
    assert done.code == 2
    assert "the split has no unlabeled images, which" in done.err.splitlines()[-1]
    assert not list(Path("runs").glob("*/checkpoints/*"))
    # Both models and the detector on labels alone.
    if method == "gct":
        alone = [f"--set=method.{name}_weight=0" for name in ("consistency", "correction")]
        assert sslseg("train", "--split", "splits/full", "--method", method, *SHORT, *alone).code == 0


@pytest.mark.parametrize("name", ["gct/voc_deeplabv2", "gct/voc_pspnet"])
def test_the_paper_s_settings_are_those_of_appendix_c(toy_split: Split, name: str) -> None:
    config = build_config(toy_split, TrainOptions(config=name, pretrained="none"))
    method, detector = config.method, config.optimizers.detector
    assert (method.consistency_weight, method.correction_weight, method.threshold) == (100.0, 1.0, 0.6)
    assert (method.detector.width, method.detector.norm) == (64, "bn")
    assert tuple(method.detector.strides) == (2, 2, 1, 2, 1, 2, 1, 2)
    assert (method.rampup, method.rampup_shape) == ("3 epochs" if "deeplab" in name else "5 epochs", "cosine")
    assert (method.detector_view, method.cross_fit, method.right) == ("weak", 0.0, None)
    assert (detector.type, detector.lr, tuple(detector.betas)) == ("Adam", 1e-4, (0.9, 0.99))
    assert detector.get("weight_decay", 0.0) == 0.0
    rate, decay = (2.5e-4, 5e-4) if "deeplab" in name else (1e-2, 1e-4)
    optimizer = config.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("SGD", rate, 0.9, decay)
    assert (config.schedule.power, config.schedule.warmup) == (0.9, 0.0)
    data = config.data
    assert (data.batch_size, tuple(data.crop), tuple(data.scale), data.flip) == (2, (321, 321), (0.5, 1.5), 0.5)
    assert data.cat_max_ratio == 1.0


def test_lengths_in_images_and_epochs(toy: DatasetDescription, toy_split: Split) -> None:
    def rampup(config: Any) -> float:
        method = build("GCT", rampup=config.method.rampup)
        method.begin_training(config.schedule.iterations, config.schedule.iterations_per_epoch)
        return method.fraction(method.rampup)

    config = build_config(toy_split, TrainOptions(config="gct/voc_deeplabv2", method="gct", pretrained="none"))
    assert config.schedule.iterations == 200_000 // 4
    assert rampup(config) == pytest.approx(3 * 6 / 50_000)  # 12 unlabeled images, 2 per iteration
    # eta counts passes over the unlabeled images, also where most images are labeled.
    eta = TrainOptions(
        config="gct/voc_deeplabv2", pretrained="none", iterations=90, assignments={"method.rampup": "3 epochs"}
    )
    assert rampup(build_config(toy_split, eta)) == pytest.approx(3 * 6 / 90)
    mostly_labeled = make_split(toy, SplitOptions(count=12))
    assert (len(mostly_labeled.samples("labeled")), len(mostly_labeled.samples("unlabeled"))) == (12, 4)
    assert rampup(build_config(mostly_labeled, eta)) == pytest.approx(3 * 2 / 90)
    shorter = dataclasses.replace(eta, assignments={})  # eta not given: the same fraction of training
    assert rampup(build_config(toy_split, shorter)) == pytest.approx(3 * 6 / 50_000)
    # SupOnly: batches of 4 for all methods, and with a quarter of the labels a quarter of N.
    baseline = TrainOptions(config="supervised/voc_gct_deeplabv2", pretrained="none")
    assert build_config(toy_split, baseline).schedule.iterations == 200_000 // 4 // 4
    assert build_config(mostly_labeled, baseline).schedule.iterations == 200_000 * 12 // 16 // 4
    fully = make_split(toy, SplitOptions(count=16))
    assert build_config(fully, baseline).schedule.iterations == 200_000 // 4
    wrong = dataclasses.replace(baseline, assignments={"schedule.samples_of": "unlabeled"})
    with pytest.raises(UserError, match="samples_of"):
        build_config(toy_split, wrong)
    # An epoch is one pass over the unlabeled images, for every method.
    for method in ("supervised", "cutmix"):
        options = TrainOptions(method=method, epochs=3, batch_size=8, unlabeled_batch_size=5)
        assert build_config(toy_split, options).schedule.iterations == 3 * 3
