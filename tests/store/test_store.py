"""The prediction store: round trips, crashes, damage, shards, and the format itself."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from sslseg.errors import IncompatibleError, UserError
from sslseg.store import (
    LABEL_MAP,
    SCORE_MAP,
    MapKind,
    StoreHeader,
    StoreReader,
    StoreWriter,
    merge_stores,
    partial_path,
    verify_store,
)
from sslseg.store import writer as writer_module
from sslseg.store.filters import resolve
from sslseg.store.format import BUILT_IN, Digest, create_file, in_order, keys
from sslseg.store.reliability import mark_reliable
from tests.data import make

FIXTURE = Path(__file__).parent.parent / "data" / "store-v1.h5"
DOCS = Path(__file__).parent.parent.parent / "docs" / "store-format.md"
PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
KINDS = {name: BUILT_IN[name] for name in ("masks", "confidence", "entropy")}


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
    arguments = dict(header=header(len(ids)), kinds=KINDS) | more
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
from tests.store.test_store import KINDS, header, maps
ids = [str(n) for n in range(200)]
writer = module.StoreWriter(Path(sys.argv[1]), header=header(200), ids=ids, kinds=KINDS)
for n, name in enumerate(ids):
    writer.add(name, **maps(n))
    print(n, flush=True)
    __import__("time").sleep(0.01)
"""


@pytest.mark.slow
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
        StoreWriter(path, header=header(200), ids=ids, kinds=KINDS)
    with StoreWriter(path, header=header(200), ids=ids, kinds=KINDS, resume=True) as writer:
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
    with pytest.raises(UserError, match=r"differs in provenance\.mode"):
        StoreWriter(path, header=header(1, provenance='{"mode": "whole"}'), ids=["a"], resume=True)
    with pytest.raises(UserError, match="differs in checkpoint_sha256"):
        StoreWriter(path, header=header(1, checkpoint_sha256="22"), ids=["a"], resume=True)


FULL = """
import resource, sys
sys.path.insert(0, {checkout!r})
from pathlib import Path
import sslseg.store.writer as module
from tests.store.test_store import KINDS, header, maps
module.SEGMENT_IMAGES = {images}
ids = [str(n) for n in range(60)]
writer = module.StoreWriter(Path(sys.argv[1]), header=header(60), ids=ids, kinds=KINDS)
stage = "write"
try:
    with writer:
        for n, name in enumerate(ids):
            if n == {limit_at}:
                while len(writer.done) < n // {images} * {images}:
                    __import__("time").sleep(0.01)
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            writer.add(name, **maps(n, (40, 40)))
    stage = "join"
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    writer.finalize()
except OSError as error:
    print(stage, error.errno, Path(error.filename).parent.name)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "limit_at", "message"),
    [
        (10, 30, "write {errno} s.h5.partial"),
        # The last segment fails after the thread has taken its last image.
        (100, 30, "write {errno} s.h5.partial"),
        (10, 99, "join {errno} {folder}"),
    ],
)
def test_a_full_disk_surfaces_and_keeps_segments(tmp_path: Path, images: int, limit_at: int, message: str) -> None:
    """The limit on the size of a file makes real writes fail in the middle, as a full disk does."""
    path = tmp_path / "s.h5"
    script = FULL.format(checkout=str(Path(__file__).parent.parent.parent), images=images, limit_at=limit_at)
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == message.format(errno=errno.EFBIG, folder=tmp_path.name), done.stderr
    assert done.returncode == 0, done.stderr
    assert not path.exists()
    ids = [str(n) for n in range(60)]
    with StoreWriter(path, header=header(60), ids=ids, kinds=KINDS, resume=True) as writer:
        assert len(writer.done) == (60 if limit_at == 99 else limit_at // images * images)
        for number, name in enumerate(ids):
            if name not in writer.done:
                writer.add(name, **maps(number, (40, 40)))
    writer.finalize()
    assert verify_store(path)["ids"] == 60
    assert [found.name for found in tmp_path.iterdir()] == ["s.h5"]


def test_a_damaged_segment_is_predicted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(writer_module, "SEGMENT_IMAGES", 1)
    ids = list("abcd")
    path = tmp_path / "s.h5"
    with StoreWriter(path, header=header(4), ids=ids, kinds=KINDS) as writer:
        for number in range(3):
            writer.add(ids[number], **maps(number))
    segments = sorted(partial_path(path).glob("*.h5"))
    assert len(segments) == 3
    changed = bytearray(segments[0].read_bytes())
    changed[-1] ^= 1
    segments[0].write_bytes(changed)
    (partial_path(path) / ".left.h5.99.tmp").write_text("half")
    with StoreWriter(path, header=header(4), ids=ids, kinds=KINDS, resume=True) as writer:
        assert len(writer.done) == 2
        assert f"{segments[0]} is damaged" in capfd.readouterr().err
        for number, name in enumerate(ids):
            if name not in writer.done:
                writer.add(name, **maps(number))
    assert writer.finalize().read_bytes() == write(tmp_path / "whole.h5", ids).read_bytes()


def test_more_segments_than_files_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SEGMENT_IMAGES", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 60, hard))
    try:
        path = write(tmp_path / "s.h5", [str(n) for n in range(150)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert verify_store(path)["ids"] == 150


def test_a_second_process_of_one_rank_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    first = StoreWriter(path, header=header(1), ids=["a"])
    with pytest.raises(UserError, match="another process is writing"):
        StoreWriter(path, header=header(1), ids=["a"], resume=True)
    first.close()
    StoreWriter(path, header=header(1), ids=["a"], resume=True).close()


def test_maps_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    mask = np.zeros((3, 4), np.int64)
    with StoreWriter(
        tmp_path / "s.h5", header=header(1), ids=["a"], kinds={"masks": LABEL_MAP, "entropy": SCORE_MAP}
    ) as writer:
        for name, maps_, message in (
            ("b", dict(mask=mask, entropy=mask * 0.5), "not one of the ids"),
            ("a", dict(mask=mask), "takes"),
            ("a", dict(mask=mask, entropy=mask[:2] * 0.5), "takes"),
            ("a", dict(mask=mask - 1, entropy=mask * 0.5), "from -1 to -1"),
            ("a", dict(mask=mask + 256, entropy=mask * 0.5), "from 256"),
        ):
            with pytest.raises(ValueError, match=message):
                writer.add(name, **maps_)
        # What was added may be changed afterwards.
        writer.add("a", mask=mask, entropy=mask * 0.5)
        mask += 1
    assert StoreReader(writer.finalize()).mask("a").max() == 0


@pytest.mark.parametrize("ids", [[], ["a", "a"], [""], ["a\0b"], ["\udcff.png"]])
def test_ids_that_a_store_cannot_hold_are_refused(tmp_path: Path, ids: list[str]) -> None:
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "s.h5"))):
        StoreWriter(tmp_path / "s.h5", header=header(1), ids=ids)


def test_two_ranks_write_one_store(tmp_path: Path) -> None:
    ids = [str(n) for n in range(10)]
    path = tmp_path / "s.h5"
    writers = [StoreWriter(path, header=header(10), ids=ids, kinds=KINDS, rank=r) for r in (0, 1)]
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
    twice = merge_stores([*shards, shards[0]], tmp_path / "twice.h5")
    assert twice.read_bytes() == merged.read_bytes()
    changed = write(
        tmp_path / "c.h5",
        [ids[p] for p in (0, 3, 6)],
        numbers=[0, 3, 7],
        positions=[0, 3, 6],
        header=header(9, shard="0/3"),
    )
    with pytest.raises(UserError, match="differ in id 'city/6'"):
        merge_stores([*shards, changed], tmp_path / "x.h5")
    with pytest.raises(UserError, match="add the shards 1/3, 2/3"):
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


@pytest.mark.parametrize("kind", ["masks", "confidence"])
def test_every_flipped_byte_of_a_map_is_a_user_error(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "s.h5", ["a", "b"])
    whole = path.read_bytes()
    with h5py.File(path) as file:
        chunk = file[f"{kind}/b"].id.get_chunk_info(0)
    for offset in range(0, chunk.size, 7):
        damaged = bytearray(whole)
        damaged[chunk.byte_offset + offset] ^= 0x55
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"s\.h5"):
            verify_store(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable HDF5"):
        verify_store(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.attrs.pop("total"), "damaged"),
        (lambda file: file.attrs.pop("complete"), "mark of being complete"),
        (lambda file: file["masks"].attrs.pop("encoding_type"), "lacks masks"),
        (lambda file: file["entropy"].attrs.pop("encoding_type"), "content_sha256"),
        (lambda file: file["entropy"].attrs.modify("encoding_type", "label-map"), "/entropy has encoding_type"),
        (lambda file: file["entropy"].attrs.modify("high", "low"), "high 'low' of a map is unknown"),
        (lambda file: file["entropy"].attrs.pop("scale"), "damaged"),
        (lambda file: file.pop("positions"), "damaged"),
        (lambda file: file["masks"].attrs.pop("encoding_version"), "/masks says"),
        (lambda file: file.pop("masks/a"), "'a' is only in one of"),
        (lambda file: file.move("entropy/a", "entropy/z"), "is only in one of /ids and /entropy"),
        (lambda file: file.create_dataset("masks/z", data=[1]), "'z' is only in one of"),
    ],
)
def test_verify_sees_a_changed_structure(tmp_path: Path, change: Callable[[h5py.File], object], message: str) -> None:
    path = write(tmp_path / "s.h5", ["a", "b"])
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(UserError, match=message):
        verify_store(path)


def test_verify_sees_values_that_are_not_a_class(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", ["a"])
    with h5py.File(path, "r+") as file:
        file["masks/a"][3, 4] = 77
    with pytest.raises(UserError, match="not a class index below 3"):
        verify_store(path)


def test_what_is_not_a_store_is_named_clearly(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("hello")
    h5py.File(tmp_path / "other.h5", "w").close()
    newer = write(tmp_path / "newer.h5", ["a"])
    with h5py.File(newer, "r+") as file:
        file.attrs["format_version"] = 99
    for name, message in {
        "text": "not a readable HDF5",
        "other": "not a prediction store",
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
    assert store.kinds == KINDS
    assert (store.high("confidence"), store.high("entropy")) == ("right", "wrong")


def test_a_store_of_version_2_still_reads(tmp_path: Path) -> None:
    store = StoreReader(make.STORE)
    assert store.kinds == make.STORE_KINDS
    assert list(store.kinds) == [
        "masks",
        "confidence",
        "doubt_maps/first",
        "doubt_maps/second",
        "margin",
        "model_masks/first",
    ]
    assert store.scores == ("confidence", "doubt", "margin")
    for number, name in enumerate(store.ids):
        expected = make.store_maps(number)
        np.testing.assert_array_equal(store.mask(name), expected.pop("mask"))
        np.testing.assert_array_equal(store.stored("model_masks/first", name), expected.pop("model_masks/first"))
        for kind, values in expected.items():
            np.testing.assert_allclose(store.score(kind, name), values, atol=1 / 65535)
    assert verify_store(make.STORE)["kinds"] == list(store.kinds)
    assert StoreReader(make.store(tmp_path / "s.h5")).content_sha256 == store.content_sha256


def test_score_maps_of_several_models_are_one_score(tmp_path: Path) -> None:
    store = StoreReader(make.store(tmp_path / "s.h5"))
    name = store.ids[1]
    first, second = (store.stored(f"doubt_maps/{model}", name) for model in ("first", "second"))
    assert store.has("doubt")
    assert store.has("doubt_maps/first")
    assert not store.has("margin_maps/first")
    np.testing.assert_array_equal(store.stored("doubt", name), np.minimum(first, second))
    np.testing.assert_array_equal(store.score("doubt", name), np.minimum(first, second) * store.scale("doubt"))
    assert [store.high(score) for score in store.scores] == ["right", "wrong", "right"]
    for kind in ("masks", "entropy"):
        with pytest.raises(ValueError, match=f"{kind}.*confidence, doubt, margin"):
            store.high(kind)
    (kept,) = resolve(["doubt<0.4"], store)
    share = np.mean([store.score("doubt", name) < np.float32(0.4) for name in store.ids])
    assert kept.share == pytest.approx(share)
    assert len(resolve(["margin>=q50"], store)) == 1
    with pytest.raises(UserError, match="holds confidence, doubt, margin, not entropy"):
        resolve(["entropy<q80"], store)


def test_where_high_means_right_the_most_reliable_model_has_the_highest_score(tmp_path: Path) -> None:
    right = MapKind("score-map", high="right")
    kinds = {"masks": LABEL_MAP, "trust_maps/a": right, "trust_maps/b": right}
    low, high = np.full((2, 3), 0.25), np.full((2, 3), 0.75)
    with StoreWriter(tmp_path / "s.h5", header=header(1), ids=["x"], kinds=kinds) as writer:
        writer.add("x", mask=np.zeros((2, 3), np.uint8), **{"trust_maps/a": high, "trust_maps/b": low})
    store = StoreReader(writer.finalize())
    np.testing.assert_allclose(store.score("trust", "x"), high, atol=1 / 65535)
    assert (store.high("trust"), store.scores) == ("right", ("trust",))


def test_kinds_have_one_order_however_they_are_given(tmp_path: Path) -> None:
    backwards = dict(reversed(make.STORE_KINDS.items()))
    assert list(in_order(backwards)) == list(in_order(make.STORE_KINDS))
    path = make.store(tmp_path / "s.h5")
    source = StoreReader(path)
    with StoreWriter(tmp_path / "t.h5", header=source.header, ids=source.ids, kinds=backwards) as writer:
        for number, name in enumerate(source.ids):
            writer.add(name, **make.store_maps(number))
    assert writer.finalize().read_bytes() == path.read_bytes()
    assert merge_stores([path], tmp_path / "m.h5").read_bytes() == path.read_bytes()


def test_the_digest_covers_ids_kinds_and_values_alone(tmp_path: Path) -> None:
    kinds = {"masks": LABEL_MAP, "margin": SCORE_MAP}
    digests = set()
    for number, high in enumerate(("wrong", "right")):
        path = tmp_path / f"{number}.h5"
        kinds["margin"] = MapKind("score-map", high=high)  # type: ignore[arg-type]
        with StoreWriter(path, header=header(1), ids=["x"], kinds=kinds) as writer:
            writer.add("x", mask=maps(0)["mask"], margin=maps(0)["entropy"])
        digests.add(StoreReader(writer.finalize()).content_sha256)
    digest = Digest()
    for kind in ("margin", "masks"):
        digest.add("x", kind, StoreReader(path).stored(kind, "x"))
    assert digests == {digest.hexdigest()}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([""], "''"),
        (["a b"], "'a b'"),
        (["a//b"], "'a//b'"),
        (["/a"], "'/a'"),
        (["a.b"], "'a.b'"),
        (["ids"], "'ids'"),
        (["positions/a"], "'positions/a'"),
        (["mask"], "'mask'"),
        (["masks/a"], "'masks/a' lies in the folder of map kind 'masks'"),
        (["a/b/c", "a/b"], "'a/b/c' lies in the folder of map kind 'a/b'"),
        (["reliable_masks"], "'reliable_masks' is built in"),
        (["confidence"], "'confidence' is built in"),
        (["entropy_maps/a"], "'entropy_maps/a' is a part of score 'entropy'"),
        (["a_maps/b", "a"], "'a_maps/b' is a part of score 'a'"),
    ],
)
def test_kinds_that_a_store_cannot_hold_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    kinds = {"masks": LABEL_MAP} | dict.fromkeys(names, SCORE_MAP)
    with pytest.raises(UserError, match=re.escape(message)):
        StoreWriter(tmp_path / "s.h5", header=header(1), ids=["a"], kinds=kinds)
    assert not list(tmp_path.iterdir())


def test_kinds_need_masks_a_known_encoding_and_one_direction(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'masks'"):
        StoreWriter(tmp_path / "s.h5", header=header(1), ids=["a"], kinds={"entropy": SCORE_MAP})
    mixed = {"masks": LABEL_MAP, "a_maps/b": SCORE_MAP, "a_maps/c": MapKind("score-map", high="right")}
    with pytest.raises(UserError, match="a_maps/b, a_maps/c are parts of score 'a'"):
        StoreWriter(tmp_path / "s.h5", header=header(1), ids=["a"], kinds=mixed)
    with pytest.raises(ValueError, match="'vector-map'"):
        MapKind("vector-map")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'good'"):
        MapKind("score-map", high="good")  # type: ignore[arg-type]


def test_an_unknown_encoding_is_readable_without_it_and_never_lost(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", ["a", "b"])
    with h5py.File(path, "r+") as file:
        file["notes/text"] = "elements without an encoding are left alone"
    assert verify_store(path)["ids"] == 2
    path = write(tmp_path / "t.h5", ["a", "b"])
    with h5py.File(path, "r+") as file:
        file.create_group("flow/forward").attrs["encoding_type"] = "vector-map"
    store = StoreReader(path)
    assert store.kinds == KINDS
    np.testing.assert_array_equal(store.mask("b"), maps(1)["mask"])
    merge: Callable[[Path], object] = lambda path: merge_stores([path], tmp_path / "m.h5")  # noqa: E731
    for refuse in (verify_store, merge, lambda path: mark_reliable(path, "q80")):
        with pytest.raises(UserError, match="/flow/forward has the unknown encoding_type 'vector-map'"):
            refuse(path)


def test_opening_a_store_does_not_walk_its_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "s.h5", [f"{city}/{n}" for city in "abc" for n in range(20)])
    with h5py.File(path, "r+") as file:
        file.copy("masks", "others")
        del file["others"].attrs["encoding_type"]
    seen: list[str] = []
    get = h5py.Group.get
    monkeypatch.setattr(h5py.Group, "get", lambda self, name, *more: (seen.append(name), get(self, name, *more))[1])
    assert StoreReader(path).kinds == KINDS
    assert len(seen) <= 12


def test_resume_refuses_other_kinds_and_an_older_version(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    kinds = {"masks": LABEL_MAP, "margin": SCORE_MAP}
    StoreWriter(path, header=header(1), ids=["a"], kinds=kinds).close()
    record_path = partial_path(path) / "header.json"
    record = json.loads(record_path.read_text())
    assert record["kinds"]["margin"]["encoding_type"] == "score-map"
    for other in (LABEL_MAP, MapKind("score-map", high="right")):
        with pytest.raises(UserError, match="differs in kinds"):
            StoreWriter(path, header=header(1), ids=["a"], kinds=kinds | {"margin": other}, resume=True)
    old = {key: value for key, value in record.items() if key != "version"} | dict(kinds=["masks"])
    record_path.write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"format version 1.*remove the folder"):
        StoreWriter(path, header=header(1), ids=["a"], resume=True)
    record_path.write_text("[]")
    with pytest.raises(UserError, match="missing or damaged"):
        StoreWriter(path, header=header(1), ids=["a"], resume=True)


@pytest.mark.parametrize("name", ["name", "self"])
def test_a_kind_may_have_any_other_name(tmp_path: Path, name: str) -> None:
    kinds = {"masks": LABEL_MAP, name: SCORE_MAP}
    with StoreWriter(tmp_path / "s.h5", header=header(1), ids=["a"], kinds=kinds) as writer:
        writer.add("a", mask=maps(0)["mask"], **{name: maps(0)["entropy"]})
    assert StoreReader(writer.finalize()).scores == (name,)


def test_marks_replace_older_ones_and_keep_every_other_map(tmp_path: Path) -> None:
    ids = ["a", "b"]
    kinds = KINDS | {"margin": MapKind("score-map", high="right")}
    path = tmp_path / "s.h5"
    with StoreWriter(path, header=header(2), ids=ids, kinds=kinds) as writer:
        for number, name in enumerate(ids):
            writer.add(name, **maps(number), margin=maps(number)["entropy"])
    before = StoreReader(writer.finalize())
    margins = [before.stored("margin", name) for name in ids]
    before.close()
    for percentile in ("q80", "q50"):
        mark_reliable(path, percentile)
    store = StoreReader(path)
    assert list(store.kinds) == ["masks", "confidence", "entropy", "margin", "reliable_masks"]
    for name, margin in zip(ids, margins, strict=True):
        np.testing.assert_array_equal(store.stored("margin", name), margin)
    assert store.high("margin") == "right"
    assert store.provenance["reliable"]["keep"] == "entropy<q50"
    verify_store(path)


class Masks(Dataset):
    def __init__(self, path: Path) -> None:
        self.store = StoreReader(path)
        self.store.mask(self.store.ids[0])

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> np.ndarray:
        mask = self.store.mask(self.store.ids[index])
        assert self.store._opened is not None
        assert self.store._opened[0] == os.getpid(), "the parent's handle is in use"
        return mask


def test_loader_workers_read_a_store_that_their_parent_has_open(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", [str(n) for n in range(12)])
    loader = DataLoader(Masks(path), batch_size=None, num_workers=2)
    for number, mask in enumerate(loader):
        np.testing.assert_array_equal(mask, maps(number)["mask"])


def test_a_mask_that_was_read_may_be_changed(tmp_path: Path) -> None:
    store = StoreReader(write(tmp_path / "s.h5", ["a"]))
    store.mask("a")[:] = 9
    np.testing.assert_array_equal(store.mask("a"), maps(0)["mask"])


def test_files_are_of_a_format_that_old_libraries_read(tmp_path: Path) -> None:
    with create_file(tmp_path / "s.h5") as file:
        assert file.libver == ("v110", "v110")


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize(
    "how",
    [
        dict(compression="lzf", chunks=(5, 5)),
        dict(compression="gzip", shuffle=True, chunks=(16, 32), maxshape=(None, None)),
        dict(compression="gzip", shuffle=True, chunks=(6, 17)),
        dict(),
        dict(compression="gzip", shuffle=True, fletcher32=True),
        dict(dtype=">u2", compression="gzip", chunks=(12, 17)),
    ],
)
def test_another_programs_files_read_and_merge(tmp_path: Path, how: dict, userblock: int) -> None:
    """A store whose maps have other filters, chunks and byte orders than our writer's, or a user block before it."""
    path = write(tmp_path / "s.h5", ["a"])
    foreign = tmp_path / "foreign.h5"
    with h5py.File(path) as source, h5py.File(foreign, "w", userblock_size=userblock) as file:
        for kind in KINDS:
            source.copy(kind, file)
        for name in ("ids", "positions"):
            source.copy(name, file)
        file.attrs.update(source.attrs)
        stored = file["confidence/a"][()]
        del file["confidence/a"]
        file["confidence"].create_dataset("a", data=stored, **how)
    store = StoreReader(foreign)
    for kind in KINDS:
        np.testing.assert_array_equal(store.stored(kind, "a"), StoreReader(path).stored(kind, "a"))
    np.testing.assert_allclose(store.confidence("a"), maps(0)["confidence"], atol=1 / 65535)
    assert merge_stores([foreign], tmp_path / "m.h5").read_bytes() == path.read_bytes()
    verify_store(foreign)


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


def bench():  # type: ignore[no-untyped-def]
    sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tools"))
    import bench_store

    return bench_store


@pytest.mark.parametrize(("count", "size"), [(200, 96), (60, 240)])
def test_masks_are_no_larger_than_png_and_read_faster(tmp_path: Path, count: int, size: int) -> None:
    report = bench().measure(bench().synthetic_masks(count, size=size), tmp_path, rounds=5)
    assert report["size_ratio"] <= 1.0
    assert report["read_ratio"] < 1.0


def test_camvid_masks_are_no_larger_than_their_own_png_and_read_faster(tmp_path: Path, camvid: Path) -> None:
    folder = camvid / "masks" / "val"
    own = sum(path.stat().st_size for path in folder.rglob("*.png"))
    report = bench().measure(bench().folder_masks(folder), tmp_path, rounds=3, own_bytes=own)
    assert report["size_ratio"] <= 1.0
    assert report["own_size_ratio"] <= 1.0
    assert report["read_ratio"] < 1.0


def test_png_ratio_counts_real_files(tmp_path: Path) -> None:
    masks = bench().synthetic_masks(3, size=64)
    report = bench().measure(masks, tmp_path, rounds=1)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.png"))
    assert report["png_bytes"] == written == sum(len(cv2.imencode(".png", mask)[1]) for mask in masks.values())
    assert json.dumps(report)


def test_commands_merge_and_verify(tmp_path: Path, sslseg, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    shards = [
        write(tmp_path / f"{n}.h5", [f"x/{n}"], numbers=[n], positions=[n], header=header(2, shard=f"{n}/2"))
        for n in (0, 1)
    ]
    merged = tmp_path / "merged.h5"
    assert sslseg("merge", *shards, "--out", merged).path == merged
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{merged}\n"))
    assert sslseg("verify", "-").path == merged
    report = json.loads(sslseg("verify", merged, "--json").out)
    assert report["path"] == str(merged)
    assert (report["ids"], report["shard"]) == (2, "0/1")
    again = sslseg("merge", *shards, "--out", merged)
    assert (again.code, again.out) == (2, "")
    assert "exists" in again.err


def test_a_map_that_another_program_left_to_its_fill_value_reads(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", ["a"])
    with h5py.File(path, "r+") as file:
        del file["masks/a"]
        file["masks"].create_dataset("a", shape=(12, 17), dtype="u1", chunks=(12, 17), compression="gzip", fillvalue=2)
    assert (StoreReader(path).mask("a") == 2).all()
