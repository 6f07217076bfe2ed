"""Scores of whole images in a store: written, read, resumed, merged, marked and verified with the maps."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from sslseg.errors import IncompatibleError, UserError
from sslseg.store import StoreReader, StoreWriter, merge_stores, partial_path, verify_store
from sslseg.store import writer as writer_module
from sslseg.store.reliability import mark_reliable
from tests.data import make
from tests.store.test_store import KINDS, header, maps

SCORES = ("agreement", "other")


def score(number: int) -> dict[str, float]:
    return dict(agreement=(number * 7 % 10) / 10, other=1.0 - number / 16)


def write(path: Path, ids: list[str], *, numbers: list[int] | None = None, **more: object) -> Path:
    numbers = numbers if numbers is not None else list(range(len(ids)))
    arguments = dict(header=header(len(ids)), kinds=KINDS, image_scores=SCORES) | more
    with StoreWriter(path, ids=ids, **arguments) as writer:  # type: ignore[arg-type]
        for number, name in zip(numbers, ids, strict=True):
            writer.add(name, score(number), **maps(number))
    return writer.finalize()


def check(store: StoreReader, ids: list[str]) -> None:
    assert list(store.image_scores) == list(SCORES)
    for name in SCORES:
        assert list(store.image_scores[name]) == ids
        for number, id_ in enumerate(ids):
            assert store.image_scores[name][id_] == np.float32(score(number)[name])


def test_round_trip_and_what_a_foreign_reader_finds(tmp_path: Path) -> None:
    ids = ["street/2", "street/1", "a"]
    path = write(tmp_path / "s.h5", ids)
    check(StoreReader(path), ids)
    with h5py.File(path, locking=False) as file:
        element = file["image_scores/agreement"]
        assert (element.dtype, element.shape) == (np.float32, (3,))
        assert dict(element.attrs) == dict(encoding_type="image-score", encoding_version=1)
        np.testing.assert_allclose(element[()], [score(number)["agreement"] for number in range(3)])
    record = verify_store(path)
    assert (record["kinds"], record["image_scores"]) == (list(KINDS), list(SCORES))
    assert "image_scores" not in verify_store(make.STORE)


def test_the_digest_is_that_of_the_page(tmp_path: Path) -> None:
    store = StoreReader(write(tmp_path / "s.h5", ["b", "a"]))
    digest = hashlib.sha256()

    def add(name: str | None, kind: str, dtype: str, values: np.ndarray) -> None:
        digest.update(json.dumps([name, kind, dtype, list(values.shape)]).encode() + b"\n" + values.tobytes())

    with h5py.File(store.path, locking=False) as file:
        for name in ("b", "a"):
            for kind in ("confidence", "entropy", "masks"):
                values = file[kind][name][()]
                add(name, kind, f"u{values.itemsize}", values)
        for kind in ("image_scores/agreement", "image_scores/other"):
            add(None, kind, "f4", file[kind][()])
    assert store.content_sha256 == digest.hexdigest()


def test_stores_without_such_scores_are_what_they_were(tmp_path: Path) -> None:
    before, now = StoreReader(make.STORE), StoreReader(make.store(tmp_path / "s.h5"))
    assert (before.image_scores, now.image_scores) == ({}, {})
    assert now.content_sha256 == before.content_sha256
    with h5py.File(now.path, locking=False) as file:
        assert "image_scores" not in file


def test_the_stored_example_still_reads(tmp_path: Path) -> None:
    store = StoreReader(make.SCORED_STORE)
    assert store.image_scores == {"agreement": dict(zip(store.ids, make.AGREEMENT["agreement"], strict=True))}
    assert verify_store(make.SCORED_STORE)["image_scores"] == ["agreement"]
    assert StoreReader(make.store(tmp_path / "s.h5", make.AGREEMENT)).content_sha256 == store.content_sha256


def test_shards_merge_to_the_single_store(tmp_path: Path) -> None:
    ids = [f"city/{number}" for number in range(7)]
    shards = []
    for shard in range(2):
        positions = list(range(shard, 7, 2))
        own = dict(numbers=positions, positions=positions, header=header(7, shard=f"{shard}/2"))
        shards.append(write(tmp_path / f"{shard}.h5", [ids[position] for position in positions], **own))
    merged = merge_stores(shards[::-1], tmp_path / "merged.h5")
    assert merged.read_bytes() == write(tmp_path / "one.h5", ids).read_bytes()
    check(StoreReader(merged), ids)
    own = dict(numbers=[1, 3, 5], positions=[1, 3, 5], header=header(7, shard="1/2"))
    bare = tmp_path / "bare.h5"
    with StoreWriter(bare, ids=ids[1::2], kinds=KINDS, positions=[1, 3, 5], header=own["header"]) as writer:  # type: ignore[arg-type]
        for number in (1, 3, 5):
            writer.add(ids[number], **maps(number))
    with pytest.raises(IncompatibleError, match="differ in image_scores"):
        merge_stores([shards[0], writer.finalize()], tmp_path / "x.h5")
    changed = Path(shutil.copy(shards[1], tmp_path / "changed.h5"))
    with h5py.File(changed, "r+") as file:
        file["image_scores/agreement"][1] = 0.123
    with pytest.raises(UserError, match="differ in id 'city/3'"):
        merge_stores([*shards, changed], tmp_path / "x.h5")


def test_a_marked_store_keeps_them(tmp_path: Path) -> None:
    ids = ["a", "b"]
    path = write(tmp_path / "s.h5", ids)
    mark_reliable(path, "q80")
    check(StoreReader(path), ids)
    verify_store(path)


def test_a_resumed_store_and_one_of_two_ranks_are_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = list("dbca")
    whole = write(tmp_path / "whole.h5", ids).read_bytes()
    monkeypatch.setattr(writer_module, "SEGMENT_IMAGES", 1)
    arguments = dict(header=header(4), ids=ids, kinds=KINDS, image_scores=SCORES)
    with StoreWriter(tmp_path / "s.h5", **arguments) as writer:  # type: ignore[arg-type]
        writer.add("c", score(2), **maps(2))
    with pytest.raises(UserError, match="differs in image_scores"):
        StoreWriter(tmp_path / "s.h5", **(arguments | dict(image_scores=())), resume=True)  # type: ignore[arg-type]
    with StoreWriter(tmp_path / "s.h5", **arguments, resume=True) as writer:  # type: ignore[arg-type]
        assert writer.done == {"c"}
        for number in (3, 1, 0):
            writer.add(ids[number], score(number), **maps(number))
    assert writer.finalize().read_bytes() == whole
    writers = [StoreWriter(tmp_path / "r.h5", **arguments, rank=rank) for rank in (0, 1)]  # type: ignore[arg-type]
    for number, name in enumerate(ids):
        writers[number % 2].add(name, score(number), **maps(number))
    for writer in writers:
        writer.close()
    assert writers[0].finalize().read_bytes() == whole


def test_a_store_that_an_earlier_version_began_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    StoreWriter(path, header=header(1), ids=["a"]).close()
    record_path = partial_path(path) / "header.json"
    record = json.loads(record_path.read_text())
    assert record.pop("image_scores") == []
    record_path.write_text(json.dumps(record))
    with StoreWriter(path, header=header(1), ids=["a"], resume=True) as writer:
        writer.add("a", mask=maps(0)["mask"])
    verify_store(writer.finalize())


@pytest.mark.parametrize("own", [{}, dict(agreement=0.5), score(0) | dict(third=0.1), dict(agreement=1.5, other=0.0)])
def test_scores_that_do_not_belong_are_refused(tmp_path: Path, own: dict[str, float]) -> None:
    with StoreWriter(tmp_path / "s.h5", header=header(1), ids=["a"], kinds=KINDS, image_scores=SCORES) as writer:
        with pytest.raises(ValueError, match="takes agreement, other in"):
            writer.add("a", own, **maps(0))
        with pytest.raises(ValueError, match="takes agreement, other in"):
            writer.add("a", dict(agreement=float("nan"), other=0.0), **maps(0))


def test_names_are_words_and_the_group_is_reserved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'a/b' of images"):
        StoreWriter(tmp_path / "s.h5", header=header(1), ids=["a"], image_scores=["a/b"])
    with pytest.raises(UserError, match="not ids, image_scores, mask, positions"):
        StoreWriter(tmp_path / "s.h5", header=header(1), ids=["a"], kinds=KINDS | {"image_scores": KINDS["entropy"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file["image_scores/agreement"].write_direct(np.float32([0.7, 0.0])), "content_sha256"),
        (lambda file: file.pop("image_scores/other"), "content_sha256"),
        (lambda file: file["image_scores/agreement"].write_direct(np.float32([0.7, 1.1])), "a number in"),
        (lambda file: file.copy("image_scores/other", "image_scores/third"), "content_sha256"),
        (lambda file: file["image_scores/other"].attrs.pop("encoding_version"), "/image_scores/other says"),
        (lambda file: file["image_scores/other"].attrs.modify("encoding_type", "tensor"), "unknown encoding_type"),
    ],
)
def test_verify_sees_a_change(tmp_path: Path, change: Callable[[h5py.File], object], message: str) -> None:
    path = write(tmp_path / "s.h5", ["a", "b"])
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(UserError, match=message):
        verify_store(path)
