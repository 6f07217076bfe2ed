"""Evaluation: equal to mmseg's own numbers, under every mode, of models and of stores."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmseg.evaluation.metrics import IoUMetric

from sslseg.artifacts.find import build_segmentor, find_model
from sslseg.artifacts.run import Run
from sslseg.data.reading import label_table, read_image, read_mask
from sslseg.evaluate import evaluate_store
from sslseg.evaluation.metrics import SegmentationMetric, confusion_matrix
from sslseg.inference import Predictor, Protocol, with_tta
from sslseg.splits.split import Split
from sslseg.store import LABEL_MAP, SCORE_MAP, MapKind, StoreHeader, StoreReader, StoreWriter
from tests.conftest import Sslseg, program


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.slow
def test_scores_equal_mmsegs_metric_to_the_last_digit(run: Path, sslseg: Sslseg) -> None:
    scores = json.loads(sslseg("eval", run, "--json", "--workers", "0").out)
    split = Split.load(run / "split")
    model = build_segmentor(find_model(run))
    metric = IoUMetric()
    metric.dataset_meta = dict(classes=split.dataset.classes)
    for sample in split.samples("val"):
        image = torch.from_numpy(read_image(sample.image)).permute(2, 0, 1)
        with torch.inference_mode():
            predicted = model.test_step(dict(inputs=[image], data_samples=[_sample(image)]))[0]
        label = torch.from_numpy(read_mask(str(sample.mask), label_table(split.dataset)).astype(np.int64))
        metric.process({}, [dict(pred_sem_seg=dict(data=predicted.pred_sem_seg.data), gt_sem_seg=dict(data=label))])
    intersect, union, _, labels = (sum(parts) for parts in zip(*metric.results, strict=True))
    raw = metric.total_area_to_metrics(intersect, union, None, labels)
    assert scores["mIoU"] == float(np.nanmean(raw["IoU"]) * 100)
    assert scores["aAcc"] == float(raw["aAcc"] * 100)
    for name, value in zip(split.dataset.classes, raw["IoU"], strict=True):
        assert scores["IoU"][name] == (None if np.isnan(value) else float(value * 100))
    own = metric.compute_metrics(metric.results)
    assert f"{own['mIoU']:.2f}" == f"{scores['mIoU']:.2f}"
    record = Run(run).read()
    assert scores["mIoU"] == record["best"]["mIoU"]
    assert scores["training"]["last"] == record["last"]


def _sample(image: torch.Tensor) -> object:
    from mmseg.structures import SegDataSample

    shape = tuple(image.shape[1:])
    return SegDataSample(metainfo=dict(ori_shape=shape, img_shape=shape, pad_shape=shape))


def test_confusion_matrix_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    mask, label = rng.integers(0, 4, (9, 7)), rng.integers(0, 5, (9, 7))
    label[label == 4] = 255
    expected = np.zeros((4, 4), int)
    for predicted, true in zip(mask.flat, label.flat, strict=True):
        if true != 255:
            expected[true, predicted] += 1
    counted = confusion_matrix(torch.from_numpy(mask), torch.from_numpy(label), num_classes=4)
    np.testing.assert_array_equal(counted, expected)


def test_iou_follows_from_the_confusion_matrix() -> None:
    metric = SegmentationMetric(("a", "b", "c"), ignore_index=255)
    rng = np.random.default_rng(1)
    for _ in range(3):
        mask, label = (torch.from_numpy(rng.integers(0, 2, (8, 8))) for _ in range(2))
        label[0] = 255
        metric.add(mask, label)
    scores = metric.finish(3)
    counts = np.array(scores["confusion"])
    for index, name in enumerate("ab"):
        union = counts[index].sum() + counts[:, index].sum() - counts[index, index]
        assert scores["IoU"][name] == pytest.approx(100 * counts[index, index] / union, rel=1e-6)
    assert scores["IoU"]["c"] is None
    assert scores["mIoU"] == pytest.approx((scores["IoU"]["a"] + scores["IoU"]["b"]) / 2)


def test_sliding_window_equals_a_slow_reference(run: Path) -> None:
    model = build_segmentor(find_model(run))
    image = torch.randint(0, 255, (3, 50, 71), dtype=torch.uint8)
    protocol = Protocol("slide", crop=(32, 40), stride=(20, 25))
    predictor = Predictor(model, protocol)
    masks, probabilities, _ = predictor.predict_batch([image])
    whole = Predictor(model, Protocol())
    total, count = torch.zeros(7, 50, 71), torch.zeros(1, 50, 71)
    tops = sorted({min(top, 50 - 32) for top in range(0, 50, 20)})
    lefts = sorted({min(left, 71 - 40) for left in range(0, 71, 25)})
    with torch.inference_mode():
        for top in tops:
            for left in lefts:
                window = image[:, top : top + 32, left : left + 40]
                total[:, top : top + 32, left : left + 40] += whole._logits([window])[0]
                count[:, top : top + 32, left : left + 40] += 1
    torch.testing.assert_close(probabilities[0], (total / count).softmax(0), rtol=1e-3, atol=1e-4)
    assert (masks[0] == total.div(count).argmax(0)).float().mean() > 0.999


def test_augmented_prediction_is_the_mean_over_scales_and_flips(run: Path) -> None:
    model = build_segmentor(find_model(run))
    image = torch.randint(0, 255, (3, 48, 64), dtype=torch.uint8)
    whole = Predictor(model, Protocol())
    flipped = whole.predict_batch([image.flip(-1)])[1].flip(-1)
    expected = (whole.predict_batch([image])[1] + flipped) / 2
    augmented = Predictor(model, Protocol(scales=(1.0,), flip=True)).predict_batch([image])[1]
    torch.testing.assert_close(augmented, expected)
    assert "tta scales 0.5,0.75" in str(with_tta(Protocol()))


def test_images_of_several_sizes_keep_their_order(run: Path) -> None:
    predictor = Predictor(build_segmentor(find_model(run)), Protocol())
    sizes = [(40, 48), (48, 40), (40, 48), (33, 35)]
    samples = [dict(inputs=torch.randint(0, 255, (3, *size), dtype=torch.uint8)) for size in sizes]
    together = predictor(samples)
    assert [tuple(prediction.mask.shape) for prediction in together] == sizes
    for sample, prediction in zip(samples, together, strict=True):
        torch.testing.assert_close(prediction.probabilities, predictor([sample])[0].probabilities, rtol=1e-3, atol=1e-4)


def test_the_mode_is_part_of_the_result(run: Path, sslseg: Sslseg) -> None:
    seen = {}
    for arguments in (
        (),
        ("--mode", "slide", "--crop", "48"),
        ("--mode", "center-crop", "--crop", "32"),
        ("--tta",),
    ):
        scores = json.loads(sslseg("eval", run, "--json", "--workers", "0", *arguments).out)
        seen[scores["protocol"]] = sum(map(sum, scores["confusion"]))
        assert Path(scores["path"]).exists()
    assert list(seen) == [
        "whole",
        "slide 48x48 stride 32x32",
        "center-crop 32x32",
        "whole, tta scales 0.5,0.75,1,1.25,1.5,1.75 flip",
    ]
    assert seen["center-crop 32x32"] == 6 * 32 * 32
    assert seen["whole"] == 6 * 64 * 64
    assert len(list(run.glob("eval-*.json"))) == 4


def test_a_store_scores_as_its_model_does(run: Path, sslseg: Sslseg) -> None:
    model = json.loads(sslseg("eval", run, "--json", "--workers", "0").out)
    store = sslseg("pseudolabel", run, "--subset", "val", "--workers", "0").path
    scores = json.loads(sslseg("eval", store, "--json").out)
    assert scores["mIoU"] == pytest.approx(model["mIoU"], abs=0.01)
    assert scores["images"] == 6


def test_figures_show_truth_prediction_and_error(run: Path, sslseg: Sslseg, tmp_path: Path) -> None:
    assert sslseg("eval", run, "--figures", tmp_path / "figures", "--workers", "0").code == 0
    panel = cv2.imread(str(tmp_path / "figures" / "016.png"))
    assert panel.shape == (64, 4 * 64 + 3 * 4, 3)
    split = Split.load(run / "split")
    truth = read_mask(str(split.samples("val")[0].mask), label_table(split.dataset))
    colors = np.array(split.dataset.palette, np.uint8)[truth][..., ::-1]
    np.testing.assert_array_equal(panel[:, 68:132], colors)
    assert cv2.imread(str(tmp_path / "figures" / "confusion.png")).shape[0] > 300


def test_any_kind_of_map_is_scored_and_shown(toy_split: Split, tmp_path: Path) -> None:
    samples = toy_split.samples("val")
    table = label_table(toy_split.dataset)
    kinds = {
        "masks": LABEL_MAP,
        "doubt_maps/a": SCORE_MAP,
        "doubt_maps/b": SCORE_MAP,
        "margin": MapKind("score-map", high="right"),
        "model_masks/a": LABEL_MAP,
        "reliable_masks": LABEL_MAP,
    }
    header = StoreHeader(toy_split.dataset.classes, toy_split.dataset.palette, 255, len(samples))
    with StoreWriter(tmp_path / "s.h5", header=header, ids=[sample.id for sample in samples], kinds=kinds) as writer:
        for sample in samples:
            truth = read_mask(str(sample.mask), table)
            mask = np.where(truth == 255, 0, truth)
            mask[:20] = (mask[:20] + 1) % 7
            wrong = (mask != truth).astype(float)
            own = {"doubt_maps/a": wrong, "doubt_maps/b": np.ones_like(wrong), "margin": 1 - wrong}
            writer.add(sample.id, mask=mask, reliable_masks=mask, **own, **{"model_masks/a": truth})
    scores = evaluate_store(StoreReader(writer.finalize()), toy_split, figures=tmp_path / "figures")
    assert scores["error_detection"] == dict(
        doubt=dict(high="wrong", auroc=1.0, average_precision=1.0),
        margin=dict(high="right", auroc=1.0, average_precision=1.0),
    )
    assert list(scores["other_masks"]) == ["model_masks/a"]
    assert scores["other_masks"]["model_masks/a"]["mIoU"] == 100
    assert scores["reliable"]["share"] == 100
    assert scores["aAcc"] < 75
    panel = cv2.imread(str(tmp_path / "figures" / f"{samples[0].id}.png"))
    assert panel.shape == (64, 7 * 64 + 6 * 4, 3)


@pytest.mark.slow
def test_two_ranks_report_one_result(run: Path) -> None:
    one = program("eval", run, "--json", cwd=run.parent)
    two = program("eval", run, "--json", cwd=run.parent, ranks=2)
    assert one.code == two.code == 0, two.err
    assert json.loads(two.out)["confusion"] == json.loads(one.out)["confusion"]
    assert json.loads(two.out)["mIoU"] == json.loads(one.out)["mIoU"]


def test_a_damaged_or_missing_input(run: Path, sslseg: Sslseg, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")
    for source, message in {
        tmp_path / "nope": "does not exist",
        tmp_path / "x.txt": "neither a run directory",
    }.items():
        done = sslseg("eval", source)
        assert done.code == 2
        assert message in done.err


EXPORTED = """
import sys
sys.modules["sslseg"] = None  # importing it fails from here on
import warnings; warnings.simplefilter("ignore")
import numpy as np
from mmseg.apis import inference_model, init_model
model = init_model(sys.argv[1] + "/config.py", sys.argv[1] + "/model.pth", device="cpu")
np.save(sys.argv[3], inference_model(model, sys.argv[2]).pred_sem_seg.data[0].numpy())
print(model.dataset_meta["classes"][1])
"""


@pytest.mark.slow
def test_exported_model_runs_in_mmseg_alone(run: Path, sslseg: Sslseg, tmp_path: Path) -> None:
    folder = sslseg("export", run).path
    sample = Split.load(run / "split").samples("val")[0]
    command = [sys.executable, "-c", EXPORTED, str(folder), sample.image, str(tmp_path / "mask.npy")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "disc"
    image = torch.from_numpy(read_image(sample.image)).permute(2, 0, 1)
    ours = Predictor(build_segmentor(find_model(run)), Protocol()).predict_batch([image])[0][0]
    assert (np.load(tmp_path / "mask.npy") == ours.numpy()).mean() > 0.999
