"""Splits: exact counts, nesting, stratification, lists, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslseg.data.description import DatasetDescription
from sslseg.data.lists import read_list
from sslseg.errors import UserError
from sslseg.split import Split, SplitOptions, labeled_count, make_split, parse_ratio, stratified_order
from tests.conftest import Sslseg


@pytest.mark.parametrize(
    ("text", "value"),
    [("1/8", Fraction(1, 8)), ("12.5%", Fraction(1, 8)), ("0.125", Fraction(1, 8)), ("1", 1), ("100%", 1)],
)
def test_ratio_is_read(text: str, value: Fraction) -> None:
    assert parse_ratio(text) == value


@pytest.mark.parametrize("text", ["0", "2", "-1/8", "101%", "x", "1/0", ""])
def test_ratio_out_of_range(text: str) -> None:
    with pytest.raises(UserError, match="--ratio"):
        parse_ratio(text)


@given(total=st.integers(1, 20000), numerator=st.integers(1, 64), denominator=st.integers(1, 64))
def test_count_is_the_ratio_rounded_half_up_and_at_least_one(total: int, numerator: int, denominator: int) -> None:
    if numerator > denominator:
        numerator, denominator = denominator, numerator
    count = labeled_count(total, SplitOptions(ratio=f"{numerator}/{denominator}"))
    assert count == max((2 * numerator * total + denominator) // (2 * denominator), 1)


def test_published_counts() -> None:
    assert [labeled_count(10582, SplitOptions(ratio=f"1/{n}")) for n in (16, 8, 4)] == [661, 1323, 2646]
    assert labeled_count(2975, SplitOptions(ratio="1/16")) == 186


def test_smaller_ratios_are_prefixes(toy: DatasetDescription) -> None:
    lists = [make_split(toy, SplitOptions(count=n, seed=3)).labeled for n in (2, 5, 16)]
    assert lists[1][:2] == lists[0]
    assert lists[2][:5] == lists[1]
    assert len(set(lists[2])) == 16
    assert make_split(toy, SplitOptions(count=16, seed=4)).labeled != lists[2]
    assert make_split(toy, SplitOptions(count=5, seed=3, nested=False)).labeled[:2] != lists[0]


def test_every_training_image_is_on_one_side(toy_split: Split) -> None:
    assert len(toy_split.labeled) == 4
    assert sorted((*toy_split.labeled, *toy_split.unlabeled)) == [f"{n:03d}" for n in range(16)]
    assert toy_split.val == tuple(f"{n:03d}" for n in range(16, 22))


def test_stratified_choice_covers_rare_classes_and_keeps_shares() -> None:
    rng = np.random.default_rng(0)
    pixels = np.zeros((200, 4))
    pixels[:, 0], pixels[:, 1] = 700, rng.integers(0, 600, 200)
    pixels[7, 2] = pixels[90, 3] = 50  # two classes, each in one image only
    target = pixels.sum(0) / pixels.sum()
    for seed in range(5):
        order = stratified_order(pixels, 20, np.random.default_rng(seed))
        assert {7, 90} <= set(order[:2])
        assert len(set(order)) == 20
        shares = pixels[order].sum(0) / pixels[order].sum()
        plain = np.random.default_rng(seed).permutation(200)[:20]
        away = np.abs(pixels[plain].sum(0) / pixels[plain].sum() - target).sum()
        assert np.abs(shares - target).sum() < max(away, 0.02)
        assert stratified_order(pixels, 8, np.random.default_rng(seed)) == order[:8]
    assert stratified_order(pixels, 9, np.random.default_rng(1)) != stratified_order(
        pixels, 9, np.random.default_rng(2)
    )


def test_files_are_what_other_programs_read(toy_split: Split, tmp_path: Path) -> None:
    path = toy_split.save(tmp_path / "s")
    assert Split.load(path) == toy_split == Split.load(tmp_path / "s")
    assert (tmp_path / "s" / "labeled.txt").read_text().splitlines() == list(toy_split.labeled)
    assert (tmp_path / "s" / "unlabeled.txt").read_text().splitlines() == list(toy_split.unlabeled)
    record = json.loads(path.read_text())
    assert (record["format"], record["version"], record["sha256"]) == ("sslseg-split", 1, toy_split.sha256)


def test_the_hash_follows_the_content_not_the_place(toy_split: Split) -> None:
    moved = replace(toy_split, dataset=toy_split.dataset.with_root("/elsewhere"))
    assert moved.sha256 == toy_split.sha256
    assert replace(toy_split, labeled=toy_split.labeled[::-1]).sha256 != toy_split.sha256


def test_another_split_is_not_overwritten(toy: DatasetDescription, toy_split: Split, tmp_path: Path) -> None:
    toy_split.save(tmp_path)
    toy_split.save(tmp_path)
    with pytest.raises(UserError, match="--out"):
        make_split(toy, SplitOptions(count=5)).save(tmp_path)


def edit(key: str, value: object) -> Callable[[dict], dict]:
    return lambda record: record | {key: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("labeled", ["001"]), "changed after it was written"),
        (edit("version", 99), "version 99"),
        (edit("format", "x"), "no split"),
        (lambda record: {key: value for key, value in record.items() if key != "val"}, "'val'"),
    ],
)
def test_a_changed_file_is_refused(toy_split: Split, tmp_path: Path, change: Callable, message: str) -> None:
    path = toy_split.save(tmp_path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        Split.load(path)


def test_a_split_of_another_dataset(toy_split: Split, tmp_path: Path) -> None:
    other = tmp_path / "other" / "images" / "train"
    other.mkdir(parents=True)
    (other / "x.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"'\d+'.*another dataset.*--data"):
        replace(toy_split, dataset=toy_split.dataset.with_root(tmp_path / "other")).samples("labeled")


CITY = [f"{city}/{city}_0000{n:02d}_000019" for city in ("jena", "ulm") for n in range(3)]
VOC = [f"2007_0000{n:02d}" for n in range(6)]


@pytest.mark.parametrize(
    ("text", "known", "expected"),
    [
        ("2007_000003\r\n2007_000001", VOC, [3, 1]),
        ("JPEGImages/2007_000002.jpg SegmentationClass/2007_000002.png\n", VOC, [2]),
        ("/JPEGImages/2007_000002.jpg /SegmentationClassAug/2007_000002.png\n", VOC, [2]),
        ("leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png\n", CITY, [4]),
        (
            "leftImg8bit/train/jena/jena_000002_000019_leftImg8bit.png gtFine/train/jena/jena_000002_000019_gtFine_labelTrainIds.png\n",
            CITY,
            [2],
        ),
        (
            "/images/train/jena_000001_000019.png\t/segmentation/train/jena_000001_000019_gtFine.png\n",
            CITY,
            [1],
        ),
        ("ulm/ulm_000000_000019_leftImg8bit.png\n\n", CITY, [3]),
    ],
)
def test_published_list_formats(tmp_path: Path, text: str, known: list[str], expected: list[int]) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode())
    assert read_list(path, known).ids == [known[index] for index in expected]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickled_permutation(tmp_path: Path, protocol: int, toy: DatasetDescription) -> None:
    order = np.random.default_rng(0).permutation(16)
    path = tmp_path / "order.pkl"
    path.write_bytes(pickle.dumps(order, protocol=protocol))
    if protocol == 0:  # text of the oldest protocol is not taken for a pickle, and names no image
        with pytest.raises(UserError, match=":1"):
            make_split(toy, SplitOptions(labeled_list=path, count=5))
        return
    split = make_split(toy, SplitOptions(labeled_list=path, count=5))
    assert split.labeled == tuple(f"{index:03d}" for index in order[:5])


class Evil:
    def __reduce__(self) -> tuple:
        return (print, ("owned",))


def test_a_hostile_pickle_is_not_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "order.pkl"
    path.write_bytes(pickle.dumps(Evil(), protocol=4))
    with pytest.raises(UserError, match="not loaded"):
        read_list(path, VOC, train=VOC)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2007_000001\n2007_000001\n", r"list.txt:2 names '2007_000001' again \(first in line 1\)"),
        ("2007_000001\nnope\n", "list.txt:2: 'nope' is no image"),
        ("\n", "is empty"),
    ],
)
def test_wrong_lists(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_list(path, VOC)


def test_an_ambiguous_entry(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("x\n")
    with pytest.raises(UserError, match="could be 'a/b/x' or 'c/a/x'"):
        read_list(path, ["a/b/x", "c/a/x"])
    path.write_text("b/x\n")
    assert read_list(path, ["a/b/x", "c/a/x"]).ids == ["a/b/x"]


def test_lists_make_a_split(toy: DatasetDescription, tmp_path: Path) -> None:
    for name, ids in dict(labeled=("003", "001"), unlabeled=("004",), val=("016", "000")).items():
        (tmp_path / name).write_text("\n".join(ids))
    options = SplitOptions(
        labeled_list=tmp_path / "labeled", unlabeled_list=tmp_path / "unlabeled", val_list=tmp_path / "val"
    )
    split = make_split(toy, options)
    assert (split.labeled, split.unlabeled, split.val) == (("003", "001"), ("004",), ("016", "000"))
    assert len(make_split(toy, replace(options, unlabeled_list=None)).unlabeled) == 22 - 2 - 2
    (tmp_path / "labeled").write_text("016")
    with pytest.raises(UserError, match="'016', which is a validation image"):
        make_split(toy, options)
    (tmp_path / "labeled").write_text("004")
    with pytest.raises(UserError, match="'004', which is labelled too"):
        make_split(toy, options)
    with pytest.raises(UserError, match="needs --labeled-list"):
        make_split(toy, SplitOptions(unlabeled_list=tmp_path / "unlabeled"))


def test_commands_without_any_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslseg: Sslseg) -> None:
    from sslseg.data import shapes

    draw = shapes.ensure
    monkeypatch.setattr(shapes, "ensure", lambda root, *, seed=0: draw(root, seed=seed, train=16, val=4))
    monkeypatch.chdir(tmp_path)
    path = sslseg("split").path
    assert str(path) == "splits/shapes-1_8-seed0/split.json" or path.parent.name == "shapes-1_8-seed0"
    assert len(Split.load(path).labeled) == 2
    record = json.loads(sslseg("split", "--count", "3", "--seed", "1", "--stratify", "--json").out)
    assert record["labeled"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ratio", "0"), "--ratio 0 is not above 0"),
        (("--ratio", "2"), "--ratio 2 is not above 0 and at most 1"),
        (("--count", "17"), "between 1 and the 16"),
        (("--count", "0"), "between 1 and the 16"),
        (("--ratio", "1/2", "--count", "3"), "exclude each other"),
        (("--labeled-list", "nowhere.txt"), "nowhere.txt cannot be read"),
    ],
)
def test_bad_input(
    toy_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sslseg: Sslseg,
    arguments: tuple,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = sslseg("split", "--data", toy_folder, *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not (tmp_path / "splits").exists()


def test_voc_families_are_told_apart(tmp_path: Path) -> None:
    from tests.data.test_layouts import make_voc

    root = make_voc(tmp_path, fine=4, augmented=6)
    from sslseg.init import describe

    dataset = describe(root).description
    (tmp_path / "fine.txt").write_text("2007_000000\n2007_000002\n")
    (tmp_path / "mixed.txt").write_text("2007_000000\n2008_000001\n")
    fine = make_split(dataset, SplitOptions(labeled_list=tmp_path / "fine.txt"))
    mixed = make_split(dataset, SplitOptions(labeled_list=tmp_path / "mixed.txt"))
    assert fine.family["fine_share"] == 1.0
    assert "finely" in fine.family["name"]
    assert (mixed.family["fine"], mixed.family["fine_share"]) == (1, 0.5)
    assert "unknown" in mixed.family["name"]
    assert make_split(dataset, SplitOptions(count=2)).family == dict(name="own draw")
