"""Pseudo-labels: what a store holds, and that ranks, shards and interruptions do not change it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sslseg.artifacts.find import build_segmentor, find_model
from sslseg.data.reading import read_image
from sslseg.evaluation.figures import heat
from sslseg.splits.split import Split
from sslseg.store import StoreReader, partial_path, verify_store
from tests.conftest import Sslseg, program


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_store_equals_the_networks_own_output(run: Path, sslseg: Sslseg) -> None:
    path = sslseg("pseudolabel", run, "--workers", "0").path
    assert path == run / "stores" / "unlabeled.h5"
    store = StoreReader(path)
    split = Split.load(run / "split")
    assert store.ids == list(split.unlabeled)
    model = build_segmentor(find_model(run))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    for sample in split.samples("unlabeled")[:3]:
        image = torch.from_numpy(read_image(sample.image)[..., ::-1].copy()).permute(2, 0, 1).float()
        with torch.inference_mode():
            logits = model.decode_head(model.extract_feat(((image - mean) / std)[None]))
            logits = torch.nn.functional.interpolate(logits, image.shape[1:], mode="bilinear", align_corners=False)
        probabilities = logits[0].softmax(0).numpy()
        agreement = (store.mask(sample.id) == probabilities.argmax(0)).mean()
        assert agreement > 0.999  # sums in another order may turn a tie
        np.testing.assert_allclose(store.confidence(sample.id), probabilities.max(0), atol=1e-3)
        entropy = -(probabilities * np.log(probabilities)).sum(0) / np.log(7)
        np.testing.assert_allclose(store.entropy(sample.id), entropy, atol=1e-3)


@pytest.mark.parametrize(("subset", "count"), [("labeled", 4), ("train", 16), ("val", 6), ("all", 22)])
def test_subsets(run: Path, sslseg: Sslseg, subset: str, count: int) -> None:
    path = sslseg("pseudolabel", run, "--subset", subset, "--scores", "none", "--workers", "0").path
    store = StoreReader(path)
    assert len(store) == count
    assert tuple(store.kinds) == ("masks",)


def test_plain_prediction_on_a_folder(run: Path, sslseg: Sslseg, tmp_path: Path) -> None:
    """Images without masks, of several sizes and kinds, in subfolders."""
    rng = np.random.default_rng(0)
    (tmp_path / "new" / "sub").mkdir(parents=True)
    shapes = {"gray": (40, 52), "rgba": (48, 64, 4), "sub/deep": (33, 47, 3)}
    for name, shape in shapes.items():
        cv2.imwrite(str(tmp_path / "new" / f"{name}.png"), rng.integers(0, 255, shape).astype(np.uint8))
    cv2.imwrite(str(tmp_path / "new" / "deep16.png"), rng.integers(0, 65535, (40, 52)).astype(np.uint16))
    pictures = tmp_path / "pictures"
    path = sslseg("pseudolabel", run, "--images", tmp_path / "new", "--export-png", pictures, "--workers", "0").path
    store = StoreReader(path)
    assert {name: store.mask(name).shape for name in store.ids} == {
        **{name: shape[:2] for name, shape in shapes.items()},
        "deep16": (40, 52),
    }
    from PIL import Image

    with Image.open(pictures / "masks" / "sub" / "deep.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), store.mask("sub/deep"))
    assert cv2.imread(str(pictures / "overlays" / "sub" / "deep.jpg")).shape == (33, 47, 3)
    for kind in ("entropy", "confidence"):
        assert cv2.imread(str(pictures / kind / "sub" / "deep.jpg")).shape == (33, 47, 3)


def test_heat_is_bright_where_the_score_is_high() -> None:
    score = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    light = heat(np.full((8, 8, 3), 100, np.uint8), score).mean(axis=2).ravel()
    assert (np.diff(light) >= 0).all()
    assert light[0] == pytest.approx(40, abs=2)
    assert light[-1] > 150


def test_shards_merge_to_the_single_store(run: Path, sslseg: Sslseg, tmp_path: Path) -> None:
    whole = sslseg("pseudolabel", run, "--workers", "0").path
    shards = [sslseg("pseudolabel", run, "--workers", "0", "--shard", f"{number}/2").path for number in range(2)]
    merged = sslseg("merge", *shards, "--out", tmp_path / "merged.h5").path
    assert merged.read_bytes() == whole.read_bytes()
    assert json.loads(sslseg("verify", merged, "--json").out)["ids"] == 12


@pytest.mark.slow
def test_two_ranks_write_the_single_store(run: Path, tmp_path: Path) -> None:
    one = program("pseudolabel", run, "--out", "one.h5", cwd=tmp_path)
    two = program("pseudolabel", run, "--out", "two.h5", cwd=tmp_path, ranks=2)
    assert one.code == two.code == 0, two.err
    assert two.out == "two.h5\n"
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


@pytest.mark.slow
def test_killed_and_resumed(run: Path, tmp_path: Path, sslseg: Sslseg) -> None:
    script = (
        "import sslseg.store.writer as w, time\n"
        "w.SEGMENT_IMAGES = 1\n"
        "original = w.StoreWriter.add\n"
        "w.StoreWriter.add = lambda *a, **k: (original(*a, **k), time.sleep(0.3))\n"
        "import sys; sys.argv = ['sslseg', 'pseudolabel', *sys.argv[1:]]\n"
        "from sslseg.__main__ import main; main()\n"
    )
    command = [sys.executable, "-c", script, str(run), "--out", "s.h5", "--workers", "0"]
    environment = os.environ | dict(OMP_NUM_THREADS="1")
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    partial = partial_path(tmp_path / "s.h5")
    deadline = time.monotonic() + 120
    while len(list(partial.glob("*.h5"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.exists()
    assert "--resume" in sslseg("verify", tmp_path / "s.h5").err
    assert program("pseudolabel", run, "--out", "s.h5", "--workers", "0", cwd=tmp_path).code == 2
    assert program("pseudolabel", run, "--out", "s.h5", "--workers", "0", "--resume", cwd=tmp_path).code == 0
    assert program("pseudolabel", run, "--out", "t.h5", "--workers", "0", cwd=tmp_path).code == 0
    assert (tmp_path / "s.h5").read_bytes() == (tmp_path / "t.h5").read_bytes()


def test_a_finished_store_is_kept(run: Path, sslseg: Sslseg) -> None:
    path = sslseg("pseudolabel", run, "--workers", "0").path
    before = path.stat().st_mtime_ns
    again = sslseg("pseudolabel", run, "--workers", "0")
    assert again.code == 2
    assert "--out" in again.err
    assert sslseg("pseudolabel", run, "--workers", "0", "--resume").path == path
    assert path.stat().st_mtime_ns == before


def test_unreliable_pixels_are_marked_and_the_rest_is_left_alone(run: Path, sslseg: Sslseg, tmp_path: Path) -> None:
    plain = StoreReader(sslseg("pseudolabel", run, "--workers", "0", "--out", tmp_path / "plain.h5").path)
    done = sslseg("pseudolabel", run, "--workers", "0", "--reliability", "q80")
    marked = StoreReader(done.path)
    assert "reliable" in done.err
    entropy = np.concatenate([plain.entropy(name).ravel() for name in plain.ids])
    limit = np.sort(entropy)[int(np.ceil(0.8 * entropy.size)) - 1]
    kept = []
    for name in plain.ids:
        for kind in plain.kinds:
            assert np.array_equal(plain.stored(kind, name), marked.stored(kind, name))
        reliable = plain.entropy(name) < limit
        expected = np.where(reliable, plain.mask(name), plain.ignore_index)
        assert np.array_equal(marked.stored("reliable_masks", name), expected)
        kept.append(reliable)
    assert np.mean(kept) == pytest.approx(0.8, abs=0.01)
    verify_store(done.path)
    # An unmarked store is marked later, and marked again; a killed marking leaves the store as it was.
    again = sslseg("pseudolabel", run, "--out", plain.path, "--resume", "--reliability", "q80")
    assert again.path.read_bytes() == done.path.read_bytes()
    sslseg("pseudolabel", run, "--out", plain.path, "--resume", "--reliability", "q50")
    assert StoreReader(plain.path).provenance["reliable"]["keep"] == "entropy<q50"
    exported = sslseg("pseudolabel", run, "--resume", "--export-png", tmp_path / "png")
    assert exported.code == 0
    assert len(list((tmp_path / "png" / "reliable_masks").rglob("*.png"))) == len(plain)


def test_a_store_leads_to_its_model(run: Path, sslseg: Sslseg, tmp_path: Path) -> None:
    first = sslseg("pseudolabel", run, "--workers", "0").path
    again = sslseg("pseudolabel", first, "--workers", "0", "--out", tmp_path / "again.h5").path
    assert again.read_bytes() == first.read_bytes()
    verify_store(again)


def test_wrong_input(run: Path, sslseg: Sslseg, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    state = torch.load(run / "checkpoints" / "best.pth", weights_only=True)
    state["meta"]["dataset"]["classes"] = ["a", "b"]
    torch.save(state, run / "checkpoints" / "other.pth")
    torch.save(dict(state_dict={}), tmp_path / "foreign.pth")
    (tmp_path / "damaged.pth").write_bytes((run / "checkpoints" / "best.pth").read_bytes()[:5000])
    cases = {
        ("--subset", "nope"): "subset 'nope' is unknown",
        ("--scores", "sureness"): "--scores sureness: the model does not give it; it gives confidence, entropy",
        ("--images", tmp_path / "empty"): "holds no images",
        ("--shard", "2/2"): "--shard '2/2'",
        ("--shard", "9/10"): "gets no image",
        ("--mode", "tiles"): "mode 'tiles' is unknown",
        ("--mode", "slide"): "needs a size",
        ("--mode", "center-crop", "--crop", "32"): "center-crop cannot",
        ("--checkpoint", "first"): "use best or last",
        ("--predictor", "fused"): "a model of method Supervised has direct",
        ("--references", "2"): "does not compare with labeled images",
        ("--reliability", "80"): "write one between",
        ("--reliability", "q0"): "write one between",
        ("--reliability", "q80", "--scores", "confidence"): "needs the entropy",
        ("--reliability", "q80", "--shard", "0/2"): "sslseg merge",
    }
    for arguments, message in cases.items():
        done = sslseg("pseudolabel", run, "--workers", "0", *arguments)
        assert (done.code, done.out) == (2, "")
        assert message in done.err
        assert done.err.count("\n") == 1
    sources = {
        run / "checkpoints" / "other.pth": "has 2 classes",
        tmp_path / "foreign.pth": "not a checkpoint of sslseg",
        tmp_path / "damaged.pth": "damaged",
        tmp_path / "no.pth": "does not exist",
        tmp_path / "empty": "give a run",
        run / "split" / "split.json": "is a split, not a model",
    }
    for source, message in sources.items():
        done = sslseg("pseudolabel", source, "--workers", "0")
        assert done.code == 2, source
        assert message in done.err, done.err
