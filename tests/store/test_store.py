"""The prediction store: round trips, crashes, damage, shards, and the format itself."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from sslseg.errors import IncompatibleError, UserError
from sslseg.store import StoreHeader, StoreReader, StoreWriter, merge_stores, partial_path, verify_store
from sslseg.store import writer as writer_module
from sslseg.store.format import keys

FIXTURE = Path(__file__).parent.parent / "data" / "store-v1.h5"
DOCS = Path(__file__).parent.parent.parent / "docs" / "store-format.md"
PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0))


def header(total: int, **more: object) -> StoreHeader:
    fields = (
        dict(classes=("a", "b", "c"), palette=PALETTE, ignore_index=255, total=total, checkpoint_sha256="11") | more
    )
    return StoreHeader(**fields)  # type: ignore[arg-type]


def maps(number: int, shape: tuple[int, int] = (12, 17)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    mask = rng.integers(0, 3, shape).astype(np.uint8)
    mask[0, 0] = 255
    return dict(mask=mask, confidence=rng.random(shape, np.float32), entropy=rng.random(shape, np.float32))


def write(path: Path, ids: list[str], *, numbers: list[int] | None = None, **more: object) -> Path:
    numbers = numbers if numbers is not None else list(range(len(ids)))
    arguments = dict(header=header(len(ids)), kinds=("masks", "confidence", "entropy")) | more
    with StoreWriter(path, ids=ids, **arguments) as writer:  # type: ignore[arg-type]
        for number, name in zip(numbers, ids, strict=True):
            writer.add(name, **maps(number))
    return writer.finalize()


NAMES = st.text(st.sampled_from("ab/.%ü é"), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(NAMES, min_size=1, max_size=6, unique=True))
def test_round_trip_of_any_ids(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    path = write(tmp_path_factory.mktemp("store") / "s.h5", ids)
    store = StoreReader(path)
    assert store.ids == ids
    for number, name in enumerate(ids):
        expected = maps(number)
        np.testing.assert_array_equal(store.mask(name), expected["mask"])
        np.testing.assert_allclose(store.confidence(name), expected["confidence"], atol=1 / 65535)
        np.testing.assert_allclose(store.entropy(name), expected["entropy"], atol=1 / 65535)
    assert verify_store(path)["ids"] == len(ids)


@given(ids=st.lists(NAMES, min_size=2, max_size=8, unique=True))
def test_keys_are_unique_and_no_key_is_the_folder_of_another(ids: list[str]) -> None:
    paths = list(keys(ids).values())
    assert len(set(paths)) == len(ids)
    assert not any(other.startswith(path + "/") for path in paths for other in paths)


def test_usual_ids_read_naturally(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", ["aachen/aachen_0", "aachen/aachen_1"])
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["masks/aachen/aachen_1"][()], maps(1)["mask"])


def test_over_255_classes_take_two_bytes(tmp_path: Path) -> None:
    many = tuple(map(str, range(300)))
    wide = StoreHeader(classes=many, palette=((0, 0, 0),) * 300, ignore_index=65535, total=1)
    mask = np.array([[0, 299], [65535, 255]])
    with StoreWriter(tmp_path / "s.h5", header=wide, ids=["x"]) as writer:
        writer.add("x", mask=mask)
    store = StoreReader(writer.finalize())
    assert store.mask("x").dtype == np.uint16
    np.testing.assert_array_equal(store.mask("x"), mask)
    verify_store(store.path)


def test_equal_content_gives_equal_files(tmp_path: Path) -> None:
    ids = ["a", "b", "c/d"]
    first = write(tmp_path / "1.h5", ids)
    time.sleep(1.1)  # a time stamp of whole seconds would differ now
    assert first.read_bytes() == write(tmp_path / "2.h5", ids).read_bytes()


KILLED = """
import sys
sys.path.insert(0, {checkout!r})
from pathlib import Path
import sslseg.store.writer as module
module.SEGMENT_IMAGES = 3
from tests.store.test_store import header, maps
ids = [str(n) for n in range(200)]
writer = module.StoreWriter(Path(sys.argv[1]), header=header(200), ids=ids, kinds=("masks", "confidence", "entropy"))
for n, name in enumerate(ids):
    writer.add(name, **maps(n))
    print(n, flush=True)
    __import__("time").sleep(0.01)
"""


def test_a_killed_writer_resumes_to_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [str(n) for n in range(200)]
    path = tmp_path / "s.h5"
    script = KILLED.format(checkout=str(Path(__file__).parent.parent.parent))
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline() != "60\n":
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not path.exists()
    with pytest.raises(UserError, match=r"incomplete.*--resume"):
        StoreReader(path)
    with pytest.raises(UserError, match="--resume"):
        StoreWriter(path, header=header(200), ids=ids, kinds=("masks", "confidence", "entropy"))
    with StoreWriter(
        path, header=header(200), ids=ids, kinds=("masks", "confidence", "entropy"), resume=True
    ) as writer:
        assert 30 <= len(writer.done) < 200
        for number, name in enumerate(ids):
            if name not in writer.done:
                writer.add(name, **maps(number))
    writer.finalize()
    assert not partial_path(path).exists()
    assert path.read_bytes() == write(tmp_path / "whole.h5", ids).read_bytes()


def test_resume_refuses_another_model(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    StoreWriter(path, header=header(1), ids=["a"]).close()
    with pytest.raises(UserError, match="another checkpoint_sha256"):
        StoreWriter(path, header=header(1, checkpoint_sha256="22"), ids=["a"], resume=True)


def test_a_full_disk_surfaces_and_keeps_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.h5"
    monkeypatch.setattr(writer_module, "SEGMENT_IMAGES", 2)
    original, calls = writer_module.atomic_write, []

    def full(target: Path):  # type: ignore[no-untyped-def]
        calls.append(target)
        if len(calls) > 1:
            raise OSError(28, "No space left on device", str(target))
        return original(target)

    monkeypatch.setattr(writer_module, "atomic_write", full)

    def hand_over() -> None:
        with StoreWriter(path, header=header(8), ids=[str(n) for n in range(8)]) as writer:
            for number in range(8):
                writer.add(str(number), mask=maps(number)["mask"])

    with pytest.raises(OSError, match="No space left"):
        hand_over()
    monkeypatch.setattr(writer_module, "atomic_write", original)
    resumed = StoreWriter(path, header=header(8), ids=[str(n) for n in range(8)], resume=True)
    assert resumed.done == {"0", "1"}
    resumed.close()


def test_two_ranks_write_one_store(tmp_path: Path) -> None:
    ids = [str(n) for n in range(10)]
    path = tmp_path / "s.h5"
    writers = [
        StoreWriter(path, header=header(10), ids=ids, kinds=("masks", "confidence", "entropy"), rank=r) for r in (0, 1)
    ]
    for number, name in enumerate(ids):
        writers[number % 2].add(name, **maps(number))
    for writer in writers:
        writer.close()
    writers[0].finalize()
    assert path.read_bytes() == write(tmp_path / "one.h5", ids).read_bytes()


def test_an_unfinished_store_cannot_be_finalized(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "s.h5", header=header(2), ids=["a", "b"])
    writer.add("a", mask=maps(0)["mask"])
    with pytest.raises(UserError, match=r"lacks 1 of 2 ids.*'b'"):
        writer.finalize()


def test_merged_shards_equal_a_single_store(tmp_path: Path) -> None:
    ids = [f"city/{n}" for n in range(9)]
    shards = []
    for shard in range(3):
        positions = list(range(shard, 9, 3))
        shards.append(
            write(
                tmp_path / f"{shard}.h5",
                [ids[p] for p in positions],
                numbers=positions,
                positions=positions,
                header=header(9, shard=f"{shard}/3"),
            )
        )
    merged = merge_stores(shards[::-1], tmp_path / "merged.h5")
    assert merged.read_bytes() == write(tmp_path / "one.h5", ids).read_bytes()
    with pytest.raises(UserError, match="add the shards 1/3"):
        merge_stores([shards[0], shards[2]], tmp_path / "x.h5")
    with pytest.raises(UserError, match="merge each shard once"):
        merge_stores([shards[0], shards[0]], tmp_path / "x.h5")
    other = write(tmp_path / "o.h5", ["z"], positions=[1], header=header(9, shard="1/3", checkpoint_sha256="22"))
    with pytest.raises(IncompatibleError, match="differ in checkpoint_sha256"):
        merge_stores([shards[0], other], tmp_path / "x.h5")


@pytest.mark.parametrize("kind", ["masks", "confidence"])
def test_verify_sees_one_changed_value(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "s.h5", ["a", "b"])
    with h5py.File(path, "r+") as file:
        file[f"{kind}/b"][3, 4] = (file[f"{kind}/b"][3, 4] + 1) % 3
    with pytest.raises(UserError, match="content_sha256"):
        verify_store(path)


def test_verify_sees_values_that_are_no_class(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", ["a"])
    with h5py.File(path, "r+") as file:
        file["masks/a"][3, 4] = 77
    with pytest.raises(UserError, match="no class index below 3"):
        verify_store(path)


def test_what_is_no_store_is_told_clearly(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("hello")
    h5py.File(tmp_path / "other.h5", "w").close()
    newer = write(tmp_path / "newer.h5", ["a"])
    with h5py.File(newer, "r+") as file:
        file.attrs["format_version"] = 99
    for name, message in {
        "text": "no readable HDF5",
        "other": "no prediction store",
        "newer": "version 99",
        "no": "does not exist",
    }.items():
        with pytest.raises(UserError, match=message):
            StoreReader(tmp_path / f"{name}.h5")
    plain = tmp_path / "plain.h5"
    write(plain, ["a"])
    with pytest.raises(UserError, match="no id 'b'"):
        StoreReader(plain).mask("b")
    with StoreWriter(tmp_path / "bare.h5", header=header(1), ids=["a"]) as writer:
        writer.add("a", mask=maps(0)["mask"])
    with pytest.raises(UserError, match="--scores entropy"):
        StoreReader(writer.finalize()).entropy("a")


def test_a_store_of_version_1_still_reads() -> None:
    store = StoreReader(FIXTURE)
    assert store.ids == ["street/1", "street/2"]
    for number, name in enumerate(store.ids):
        np.testing.assert_array_equal(store.mask(name), maps(number)["mask"])
        np.testing.assert_allclose(store.entropy(name), maps(number)["entropy"], atol=1 / 65535)
    assert verify_store(FIXTURE)["kinds"] == ["masks", "confidence", "entropy"]


class Masks(Dataset):
    def __init__(self, path: Path) -> None:
        self.store = StoreReader(path)
        self.store.mask(self.store.ids[0])

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.store.mask(self.store.ids[index])


def test_loader_workers_read_a_store_that_their_parent_has_open(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", [str(n) for n in range(12)])
    loader = DataLoader(Masks(path), batch_size=None, num_workers=2)
    for number, mask in enumerate(loader):
        np.testing.assert_array_equal(mask, maps(number)["mask"])


def test_another_programs_files_read_too(tmp_path: Path) -> None:
    """A store whose maps have other filters and chunks than our writer's."""
    path = write(tmp_path / "s.h5", ["a"])
    with h5py.File(path, "r+") as file:
        del file["masks/a"]
        file["masks"].create_dataset("a", data=maps(0)["mask"], compression="lzf", chunks=(5, 5))
    np.testing.assert_array_equal(StoreReader(path).mask("a"), maps(0)["mask"])
    verify_store(path)


def test_the_documented_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "store.h5", ["street/1", "street/2"])
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 2
    reading: dict[str, np.ndarray] = {}
    exec(blocks[0], reading)
    np.testing.assert_array_equal(reading["mask"], maps(0)["mask"])
    np.testing.assert_allclose(reading["confidence"], maps(0)["confidence"], atol=1 / 65535)
    writing: dict[str, object] = {}
    exec(blocks[1], writing)
    assert verify_store(tmp_path / "foreign.h5")["ids"] == 1


def test_masks_are_no_larger_than_png_and_read_faster(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tools"))
    import bench_store

    masks = bench_store.drawn_masks(60, size=240)
    report = bench_store.measure(masks, tmp_path, rounds=5)
    assert report["size_ratio"] <= 1.0
    assert report["read_ratio"] < 1.0


def test_png_ratio_counts_real_files(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tools"))
    import bench_store

    masks = bench_store.drawn_masks(3, size=64)
    report = bench_store.measure(masks, tmp_path, rounds=1)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.png"))
    assert report["png_bytes"] == written == sum(len(cv2.imencode(".png", mask)[1]) for mask in masks.values())
    assert json.dumps(report)
