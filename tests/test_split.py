from __future__ import annotations

import itertools
import json
import math
import pickle
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sslseg.data import layouts
from sslseg.data.description import DatasetDescription, Listing
from sslseg.data.labels import color_map
from sslseg.errors import UserError
from sslseg.split import SplitOptions, make_split
from sslseg.splits.draw import labeled_count, parse_ratio
from sslseg.splits.split import SUBSETS, Split
from sslseg.splits.stratify import stratified_order
from tests.conftest import SHORT
from tests.data.make import folder, image, mask


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetDescription:
    root = folder(tmp_path / "set")
    return DatasetDescription("folder", str(root), "set", ("a", "b", "c"), color_map(3), 255)


def listed(tmp_path: Path, *names: str, file: str = "list.txt") -> Path:
    path = tmp_path / file
    path.write_text("\n".join(names))
    return path


@pytest.mark.parametrize("text", ["1/8", "12.5%", "0.125", " 12.5 % "])
def test_ratio_spellings(text: str) -> None:
    assert parse_ratio(text) == Fraction(1, 8)


@pytest.mark.parametrize("text", ["0", "2", "-1/8", "101%", "x", "", "1/0", "nan", "inf", "1/8/2"])
def test_ratios_out_of_range_or_nonsense(text: str) -> None:
    with pytest.raises(UserError, match=r"--ratio .*(is not a valid ratio|not above 0)"):
        parse_ratio(text)


@given(total=st.integers(1, 20_000), part=st.integers(1, 64), whole=st.integers(1, 64))
def test_counts_round_half_up_and_are_at_least_one(total: int, part: int, whole: int) -> None:
    part, whole = min(part, whole), max(part, whole)
    expected = max(math.floor(Fraction(part, whole) * total + Fraction(1, 2)), 1)
    assert labeled_count(total, ratio=f"{part}/{whole}") == expected
    assert 1 <= expected <= total


def test_half_is_rounded_up() -> None:
    assert labeled_count(12, ratio="1/8") == 2
    assert labeled_count(3, ratio="1/16") == 1
    assert labeled_count(10_582, ratio="1/16") == 661


def test_default_is_one_eighth_without_replacement(dataset: DatasetDescription) -> None:
    split = make_split(dataset, SplitOptions())
    assert (len(split.labeled), split.ratio, len(split.val)) == (2, "1/8", 4)
    assert sorted((*split.labeled, *split.unlabeled)) == [f"t{index:03}" for index in range(16)]
    assert make_split(dataset, SplitOptions(ratio="12.5%")).sha256 == split.sha256


@settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), stratify=st.booleans())
def test_smaller_splits_are_prefixes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, seed: int, stratify: bool
) -> None:
    root = _shared(tmp_path_factory)
    dataset = DatasetDescription("folder", str(root), "set", ("a", "b", "c"), color_map(3), 255)
    small, large = sorted(data.draw(st.tuples(st.integers(1, 16), st.integers(1, 16))))
    less, more = (
        make_split(dataset, SplitOptions(count=n, seed=seed, stratify=stratify)).labeled for n in (small, large)
    )
    assert more[:small] == less
    assert len(set(more)) == large


def _shared(factory: pytest.TempPathFactory) -> Path:
    root = factory.getbasetemp() / "nested"
    return root if root.exists() else folder(root)


def test_independent_splits_are_not_nested(dataset: DatasetDescription) -> None:
    less, more = (make_split(dataset, SplitOptions(count=n, nested=False)).labeled for n in (4, 8))
    assert more[:4] != less


def test_seeds_differ_and_repeat(dataset: DatasetDescription) -> None:
    first, same, other = (make_split(dataset, SplitOptions(count=6, seed=seed)).labeled for seed in (0, 0, 1))
    assert first == same != other


@pytest.mark.parametrize("count", [0, -1, 17])
def test_counts_that_are_not_there(dataset: DatasetDescription, count: int) -> None:
    with pytest.raises(UserError, match=f"--count {count} is not between 1 and the 16"):
        make_split(dataset, SplitOptions(count=count))


def test_ratio_and_count_exclude_each_other(dataset: DatasetDescription) -> None:
    with pytest.raises(UserError, match="exclude each other"):
        make_split(dataset, SplitOptions(ratio="1/8", count=3))


def test_only_images_with_masks_are_labeled(dataset: DatasetDescription) -> None:
    for index in range(12):
        (Path(dataset.root) / f"masks/train/t{index:03}.png").unlink()
    split = make_split(dataset, SplitOptions(ratio="1"))
    assert sorted(split.labeled) == ["t012", "t013", "t014", "t015"]
    assert len(split.unlabeled) == 12
    for path in Path(dataset.root).glob("masks/train/*.png"):
        path.unlink()
    with pytest.raises(UserError, match="none of 16 training images has a mask"):
        make_split(dataset, SplitOptions())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=8), st.integers(0, 5))
def test_every_class_is_covered_while_that_is_possible(sets: list[set[int]], seed: int) -> None:
    present = np.array([[index in classes for index in range(6)] for classes in sets])
    rng = np.random.default_rng(seed)
    pixels = present * rng.integers(1, 100, present.shape)
    wanted = present.any(axis=0)
    order = stratified_order(pixels, len(sets), np.random.default_rng(seed))
    assert sorted(order) == list(range(len(sets)))
    for count in range(1, len(sets) + 1):
        possible = any(
            (present[list(rows)].any(axis=0) == wanted).all()
            for rows in itertools.combinations(range(len(sets)), count)
        )
        assert (present[order[:count]].any(axis=0) == wanted).all() == possible


def test_greedy_alone_would_miss_this_cover() -> None:
    """The image with most classes, four, needs two more images; the other two hold all six."""
    pixels = np.array([[1, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    assert sorted(stratified_order(pixels, 2, np.random.default_rng(0))) == [1, 2]


def test_stratified_class_frequencies_are_closer_than_random_ones() -> None:
    rng = np.random.default_rng(0)
    pixels = (rng.dirichlet(np.full(8, 0.2), 400) * 1000).astype(int)
    target = pixels.sum(0) / pixels.sum()

    def distance(rows: object) -> float:
        chosen = pixels[rows].sum(0)
        return float(np.abs(chosen / chosen.sum() - target).sum())

    random = [distance(np.random.default_rng(seed).permutation(400)[:25]) for seed in range(20)]
    orders = [stratified_order(pixels, 25, np.random.default_rng(seed)) for seed in range(3)]
    assert max(map(distance, orders)) < min(random)
    assert len({tuple(order) for order in orders}) == 3


def test_published_list(dataset: DatasetDescription, tmp_path: Path) -> None:
    split = make_split(dataset, SplitOptions(labeled_list=listed(tmp_path, "t003", "images/train/t001.png")))
    assert (split.labeled, len(split.unlabeled), split.seed, split.strategy) == (
        ("t003", "t001"),
        14,
        None,
        "list",
    )


def test_both_lists_leave_the_others_out(dataset: DatasetDescription, tmp_path: Path) -> None:
    options = SplitOptions(
        labeled_list=listed(tmp_path, "t003"), unlabeled_list=listed(tmp_path, "t005", "t004", file="u.txt")
    )
    split = make_split(dataset, options)
    assert (split.labeled, split.unlabeled) == (("t003",), ("t005", "t004"))


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "message"),
    [
        (("t001",), ("t002", "t001"), r"u\.txt names 't001', which is labeled too"),
        (("v001",), ("t002",), r"list\.txt names 'v001', which is a validation image"),
        (("t001",), ("v002",), r"u\.txt names 'v002', which is a validation image"),
        (("t000",), ("t002",), r"list\.txt names 't000' as labeled, which has no mask"),
    ],
)
def test_lists_that_contradict(
    dataset: DatasetDescription, tmp_path: Path, labeled: tuple[str], unlabeled: tuple[str], message: str
) -> None:
    (Path(dataset.root) / "masks/train/t000.png").unlink()
    options = SplitOptions(
        labeled_list=listed(tmp_path, *labeled), unlabeled_list=listed(tmp_path, *unlabeled, file="u.txt")
    )
    with pytest.raises(UserError, match=message):
        make_split(dataset, options)


def test_lists_and_ratios_do_not_mix(dataset: DatasetDescription, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave --ratio and --count out"):
        make_split(dataset, SplitOptions(labeled_list=listed(tmp_path, "t001"), count=1))
    with pytest.raises(UserError, match="--unlabeled-list needs --labeled-list"):
        make_split(dataset, SplitOptions(unlabeled_list=listed(tmp_path, "t001")))


def test_pickled_permutation_takes_the_count(dataset: DatasetDescription, tmp_path: Path) -> None:
    path = tmp_path / "split.pkl"
    path.write_bytes(pickle.dumps(np.arange(16)[::-1]))
    assert make_split(dataset, SplitOptions(labeled_list=path, count=3)).labeled == ("t015", "t014", "t013")
    (Path(dataset.root) / "masks/train/t014.png").unlink()
    with pytest.raises(UserError, match="'t014' as labeled, which has no mask"):
        make_split(dataset, SplitOptions(labeled_list=path, count=3))


def test_val_list(dataset: DatasetDescription, tmp_path: Path) -> None:
    split = make_split(dataset, SplitOptions(val_list=listed(tmp_path, "t001", "t002")))
    assert split.val == ("t001", "t002")
    assert not {"t001", "t002"} & {*split.labeled, *split.unlabeled}
    assert make_split(dataset, SplitOptions(val_list=listed(tmp_path))).val == ()


def test_validation_needs_images_and_masks(dataset: DatasetDescription) -> None:
    (Path(dataset.root) / "masks/val/v001.png").unlink()
    with pytest.raises(UserError, match=r"'v001' has no mask \(1 of 4\)"):
        make_split(dataset, SplitOptions())
    for path in Path(dataset.root).glob("images/val/*"):
        path.unlink()
    with pytest.raises(UserError, match="no validation images; name some with --val-list"):
        make_split(dataset, SplitOptions())


def voc(tmp_path: Path, fine: int, total: int) -> tuple[DatasetDescription, list[str]]:
    home = tmp_path / "VOC2012"
    names = [f"i{index:04}" for index in range(total)]
    for name in (*names, "val"):
        image(home / f"JPEGImages/{name}.jpg")
        mask(home / f"SegmentationClassAug/{name}.png")
    lists = home / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(names[:fine]))
    (lists / "val.txt").write_text("val\n")
    return DatasetDescription("voc", str(home), "voc", ("a",), color_map(1), 255, {"family": "blender"}), names


def test_families_differ_in_fine_annotations(tmp_path: Path) -> None:
    dataset, names = voc(tmp_path, fine=93, total=663)
    family = make_split(dataset, SplitOptions(labeled_list=listed(tmp_path, *names[:662]))).family
    assert (family["fine"], family["name"]) == (93, "mixed annotations (CPS and UniMatch, blender 1/16)")
    family = make_split(dataset, SplitOptions(labeled_list=listed(tmp_path, *names[:90]))).family
    assert (family["fine_share"], family["name"]) == (
        1.0,
        "all finely annotated (classic, or U2PL's blender lists)",
    )
    family = make_split(dataset, SplitOptions(labeled_list=listed(tmp_path, *names[90:110]))).family
    assert (family["fine"], family["name"]) == (3, "mixed annotations (unknown family)")


def test_saved_and_loaded(dataset: DatasetDescription, tmp_path: Path) -> None:
    split = make_split(dataset, SplitOptions(seed=3))
    path = split.save(tmp_path / "s")
    assert Split.load(path) == Split.load(tmp_path / "s") == split
    assert (tmp_path / "s/labeled.txt").read_text() == "".join(f"{name}\n" for name in split.labeled)
    assert json.loads(path.read_text())["sha256"] == split.sha256
    assert split.save(tmp_path / "s") == path
    with pytest.raises(UserError, match="holds another split; give another folder with --out"):
        make_split(dataset, SplitOptions(seed=4)).save(tmp_path / "s")
    assert Split.load(path) == split


def test_the_hash_does_not_depend_on_the_place(dataset: DatasetDescription, tmp_path: Path) -> None:
    split = make_split(dataset, SplitOptions())
    Path(dataset.root).rename(tmp_path / "moved")
    path = split.save(tmp_path / "s")
    with pytest.raises(UserError, match="does not exist"):
        Split.load(path).samples("all")
    moved = Split.load(path, root=tmp_path / "moved")
    assert moved.sha256 == split.sha256
    assert len(moved.samples("all")) == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "was changed after it was written"),
        ({"labeled": ["t001"]}, "was changed after it was written"),
        ({"family": None}, "was changed after it was written"),
        ({"version": 99}, "has version 99, this program reads up to 1"),
        ({"version": "x"}, "has no version number"),
        ({"format": "x"}, "is not a split of sslseg"),
        ({"labeled": None}, "lacks or has a wrong"),
        ({"dataset": 3}, "is damaged"),
    ],
)
def test_tampering_is_noticed(
    dataset: DatasetDescription, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = make_split(dataset, SplitOptions()).save(tmp_path / "s")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        Split.load(path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not valid JSON"), ("[]", "is not a split of sslseg"), (None, "cannot be read")]
)
def test_files_that_are_not_a_split(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "split.json").write_text(text)
    with pytest.raises(UserError, match=message):
        Split.load(tmp_path / "split.json")


def test_samples_by_subset(dataset: DatasetDescription) -> None:
    split = make_split(dataset, SplitOptions())
    sizes = {subset: len(split.samples(subset)) for subset in ("labeled", "unlabeled", "train", "val", "all")}
    assert sizes == split.sizes
    assert sizes == {"labeled": 2, "unlabeled": 14, "train": 16, "val": 4, "all": 20}
    assert [sample.id for sample in split.samples("labeled")] == list(split.labeled)
    with pytest.raises(UserError, match="subset 'x' is unknown"):
        split.samples("x")
    with pytest.raises(UserError, match=r"names 'gone' \(1 of 1 ids\), which is not in"):
        replace(split, labeled=("gone",)).samples("labeled")


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The roots of all folders that were listed as datasets."""
    roots: list[str] = []
    list_samples = layouts.folder.list_samples

    def record(description: DatasetDescription) -> Listing:
        roots.append(description.root)
        return list_samples(description)

    monkeypatch.setattr(layouts.folder, "list_samples", record)
    return roots


def test_a_split_lists_its_dataset_once(dataset: DatasetDescription, tmp_path: Path, listings: list[str]) -> None:
    split = make_split(dataset, SplitOptions())
    for subset in SUBSETS:
        split.samples(subset)
    assert listings == [dataset.root]
    loaded = Split.load(split.save(tmp_path / "s"))
    assert loaded.sizes["train"] == 16
    assert listings == [dataset.root]
    for subset in SUBSETS:
        assert loaded.samples(subset) == split.samples(subset)
    assert listings == [dataset.root] * 2


@pytest.mark.parametrize("command", ["split", "train"])
def test_a_command_lists_the_dataset_once(
    dataset: DatasetDescription, workspace: Path, sslseg, listings: list[str], command: str
) -> None:
    flags = ("--data", dataset.root, "--classes", "a,b,c", "--ignore-index", "255")
    if command == "train":
        flags = (*SHORT, "--method", "cutmix", "--dry-run")
    assert sslseg(command, *flags).code == 0
    assert len(listings) == 1


def test_command_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslseg) -> None:
    root = folder(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    done = sslseg("split", "--data", root, "--classes", "a,b,c", "--ignore-index", "255", "--workers", "1")
    assert str(done.path) == "splits/set-1_8-seed0/split.json"
    assert "2 labeled, 14 unlabeled, 4 validation" in done.err
    again = sslseg("split", "--data", root, "--classes", "a,b,c", "--ignore-index", "255", "--ratio", "12.5%", "--json")
    record = json.loads(again.out)
    assert (again.code, record["labeled"], record["path"]) == (0, 2, str(done.path))
    assert record["sha256"] == Split.load(done.path).sha256


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--ratio", "0"), "--ratio 0 is not above 0"),
        (("--data", "gone"), "does not exist"),
        (("--classes", "a,b"), "describe --data: give it too"),
        (("--ignore-index", "3"), "describe --data: give it too"),
    ],
)
def test_command_errors_are_one_line(workspace: Path, sslseg, flags: tuple[str, ...], message: str) -> None:
    done = sslseg("split", *flags)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_camvid(camvid: Path) -> None:
    from sslseg.init import describe

    split = make_split(describe(camvid, ignore_index=11).description, SplitOptions())
    assert (len(split.labeled), len(split.unlabeled), len(split.val)) == (46, 321, 101)
