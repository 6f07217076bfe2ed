from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from sslseg.data.description import DatasetDescription, Listing
from sslseg.data.labels import color_map
from sslseg.data.layouts import detect, layout_module, list_samples
from sslseg.data.layouts.suffixes import detect_suffixes
from sslseg.data.reading import label_table, read_mask
from sslseg.errors import UserError
from tests.data.make import folder, image, mask


def described(root: Path, layout: str | None = None, **options: object) -> DatasetDescription:
    layout = layout or detect(root)
    facts = layout_module(layout).facts(root)
    classes = facts.classes or ("a", "b", "c")
    palette = facts.palette or color_map(len(classes))
    place = root if root.is_dir() else root.parent
    return DatasetDescription(
        layout, str(place), "set", classes, palette, facts.ignore_index, {**facts.options, **options}
    )


def listed(root: Path, layout: str | None = None, **options: object) -> Listing:
    return list_samples(described(root, layout, **options))


def names(samples: dict[str, object]) -> list[str]:
    return list(samples)


def test_folder(tmp_path: Path) -> None:
    listing = listed(folder(tmp_path, train=3, val=2))
    assert (names(listing.train), names(listing.val)) == (["t000", "t001", "t002"], ["v000", "v001"])
    assert listing.train["t001"].mask == str(tmp_path / "masks/train/t001.png")


@pytest.mark.parametrize(
    "places",
    [
        ("JPEGImages/training", "annotations/training", "JPEGImages/valid", "annotations/valid"),
        ("img_dir/train", "ann_dir/train", "img_dir/test", "ann_dir/test"),
        ("train/images", "train/labels", "val/images", "val/labels"),
    ],
)
def test_folder_under_other_names_and_nested(tmp_path: Path, places: tuple[str, ...]) -> None:
    for path, draw in zip(places, (image, mask, image, mask), strict=True):
        draw(tmp_path / path / "city/x.png" if "val" not in path and "test" not in path else tmp_path / path / "y.png")
    listing = listed(tmp_path)
    assert (names(listing.train), names(listing.val)) == (["city/x"], ["y"])
    assert all(sample.mask for sample in (*listing.train.values(), *listing.val.values()))


def test_ids_of_both_subsets_never_collide(tmp_path: Path) -> None:
    for side in ("train", "val"):
        image(tmp_path / "images" / side / "0001.png")
    listing = listed(tmp_path)
    assert (names(listing.train), names(listing.val)) == (["0001"], ["val/0001"])


def test_images_without_masks_and_an_unlabeled_folder(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", train=2, val=1)
    (root / "masks/train/t000.png").unlink()
    image(tmp_path / "more/deep/t001.jpg")
    listing = listed(root, unlabeled_dir=str(tmp_path / "more"))
    assert {name: sample.mask is not None for name, sample in listing.train.items()} == {
        "t000": False, "t001": True, "unlabeled/deep/t001": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("place", "message"),
    [("nowhere", "is not a folder"), ("empty", "holds no images"), ("set/images", "part of")],
)
def test_unusable_unlabeled_folders(tmp_path: Path, place: str, message: str) -> None:
    root = folder(tmp_path / "set", train=2, val=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"--unlabeled-dir .*{message}"):
        listed(root, unlabeled_dir=str(tmp_path / place))


def test_flat_folder_with_lists(tmp_path: Path) -> None:
    for name in "abcd":
        image(tmp_path / f"images/{name}.jpg")
        mask(tmp_path / f"masks/{name}.png")
    assert names(listed(tmp_path).train) == ["a", "b", "c", "d"]
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/val.txt").write_text("d\n")
    assert (names(listed(tmp_path).train), names(listed(tmp_path).val)) == (["a", "b", "c"], ["d"])
    (tmp_path / "train.txt").write_bytes(b"images/c.jpg\r\na")
    listing = listed(tmp_path)
    assert (names(listing.train), listing.listed) == (["a", "c"], ("c", "a"))
    (tmp_path / "train.txt").write_text("d\n")
    with pytest.raises(UserError, match=r"val\.txt names 'd', which .*train\.txt has too"):
        listed(tmp_path)
    (tmp_path / "train.txt").write_text("nobody\n")
    with pytest.raises(UserError, match=r"train\.txt names 'nobody', which has no image"):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        ("{}", "{}", ("", "")),
        ("{}_leftImg8bit", "{}_gtFine_labelTrainIds", ("_leftImg8bit", "_gtFine_labelTrainIds")),
        ("{}", "{}_mask", ("", "_mask")),
        ("{}", "{}_L", ("", "_L")),
        ("{}_mat", "{}_mask", ("_mat", "_mask")),
    ],
)
def test_suffixes(images: str, masks: str, expected: tuple[str, str]) -> None:
    stems = [f"city/f_{index:04}" for index in range(0, 500, 7)]
    found = detect_suffixes([images.format(s) for s in stems], [masks.format(s) for s in stems[:40]], where="set")
    assert found == expected


def test_two_kinds_of_mask_are_ambiguous() -> None:
    stems = ["f_1", "f_2"]
    masks = [stem + end for stem in stems for end in ("_edge", "_mask")]
    with pytest.raises(UserError, match="'_edge', '_mask'; choose one with --mask-suffix"):
        detect_suffixes(stems, masks, where="set")
    with pytest.raises(UserError, match="no mask has the name of an image"):
        detect_suffixes(["a"], ["b"], where="set")


def test_two_images_of_one_name(tmp_path: Path) -> None:
    image(tmp_path / "images/train/a.png")
    image(tmp_path / "images/train/a.jpg")
    with pytest.raises(UserError, match="differ in their extension only"):
        listed(tmp_path)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    home = tmp_path / "VOCdevkit/VOC2012"
    for name in ("f1", "f2", "s1", "s2", "v1"):
        image(home / f"JPEGImages/{name}.jpg")
    for name in ("f1", "f2", "v1"):
        mask(home / f"SegmentationClass/{name}.png", 15)
    lists = home / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("f2\nf1\n")
    (lists / "val.txt").write_text("v1\n")
    return tmp_path


def test_voc_classic_and_blender(voc: Path) -> None:
    assert detect(voc) == detect(voc / "VOCdevkit/VOC2012") == "voc"
    listing = listed(voc)
    assert (names(listing.train), listing.listed, names(listing.val)) == (["f1", "f2"], ("f2", "f1"), ["v1"])
    home = voc / "VOCdevkit/VOC2012"
    for name in ("f1", "f2", "s1", "s2", "v1"):
        mask(home / f"SegmentationClassAug/{name}.png")
    blender = listed(voc)
    assert names(blender.train) == ["f1", "f2", "s1", "s2"]
    assert "SegmentationClassAug" in str(blender.train["f1"].mask)
    (home / "ImageSets/Segmentation/trainaug.txt").write_text("/JPEGImages/s2.jpg /SegmentationClassAug/s2.png\nf1\n")
    assert listed(voc).listed == ("s2", "f1")
    assert names(listed(voc, family="classic").train) == ["f1", "f2"]
    with pytest.raises(UserError, match="family 'x' is unknown"):
        listed(voc, family="x")


def test_voc_names_come_from_mmseg(voc: Path) -> None:
    description = described(voc)
    assert (description.num_classes, description.classes[15], description.ignore_index) == (21, "person", 255)
    assert description.palette[15] == (192, 128, 128)


def test_pascal_context(tmp_path: Path) -> None:
    for name in ("a", "v"):
        image(tmp_path / f"JPEGImages/{name}.jpg")
        mask(tmp_path / f"SegmentationClassContext/{name}.png", 59)
    lists = tmp_path / "ImageSets/SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("v\n")
    description = described(tmp_path)
    assert (description.layout, description.num_classes) == ("pascal-context", 60)
    assert (names(list_samples(description).train), names(list_samples(description).val)) == (["a"], ["v"])


def test_cityscapes_label_ids_and_train_ids(tmp_path: Path) -> None:
    stem = "ulm_000000_000019"
    for side in ("train", "val"):
        image(tmp_path / f"leftImg8bit/{side}/ulm/{stem.replace('ulm', side)}_leftImg8bit.png")
        values = np.array([[7, 33, 0, 29]], np.uint8)
        mask(tmp_path / f"gtFine/{side}/ulm/{stem.replace('ulm', side)}_gtFine_labelIds.png", values)
    description = described(tmp_path)
    assert (description.layout, description.num_classes) == ("cityscapes", 19)
    sample = list_samples(description).train["ulm/train_000000_000019"]
    assert read_mask(str(sample.mask), label_table(description)).tolist() == [[0, 18, 255, 255]]
    mask(
        tmp_path / "gtFine/train/ulm/train_000000_000019_gtFine_labelTrainIds.png",
        np.array([[0, 18, 255]], np.uint8),
    )
    description = described(tmp_path)
    sample = list_samples(description).train["ulm/train_000000_000019"]
    assert read_mask(str(sample.mask), label_table(description)).tolist() == [[0, 18, 255]]
    mask(tmp_path / "gtFine/train/ulm/other_gtFine_labelIds.png", 7)
    assert described(tmp_path).options["mask_suffix"] == "_gtFine_labelIds", "train ids of some images only"


def test_pairs(tmp_path: Path) -> None:
    for name in ("a", "b", "with space", "u", "v"):
        image(tmp_path / f"x/{name}.jpg")
        mask(tmp_path / f"y/{name}.png")
    text = "# comment\nx/a.jpg y/a.png\nx/b.jpg,y/b.png\nx/with space.jpg\ty/with space.png\nx/u.jpg\n"
    (tmp_path / "train.txt").write_text(text)
    (tmp_path / "val.txt").write_text("x/v.jpg y/v.png")
    listing = listed(tmp_path / "train.txt")
    assert {name: sample.mask is not None for name, sample in listing.train.items()} == {
        "a": True, "b": True, "u": False, "with space": True,
    }  # fmt: skip
    assert names(listing.val) == ["v"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x/a.jpg y/gone.png", r"train\.txt:1: .*gone\.png does not exist"),
        ("x/a.jpg\nx/a.jpg", r"train\.txt:2: image .* is named twice"),
        ("one two three", r"train\.txt:1: 'one two three' is not an image-mask pair"),
    ],
)
def test_wrong_pairs_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    image(tmp_path / "x/a.jpg")
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        listed(tmp_path / "train.txt")


def test_the_synthetic_dataset_is_created_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sslseg.data import synthetic
    from sslseg.data.layouts.shapes import describe

    monkeypatch.setattr(synthetic, "ensure", lambda root, **_: folder(root, train=2, val=1))
    assert names(list_samples(describe(tmp_path / "shapes")).train) == ["t000", "t001"]


def test_folders_that_are_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        detect(tmp_path / "gone")
    with pytest.raises(UserError, match="is an empty folder"):
        detect(tmp_path)
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UserError, match="has no known layout"):
        detect(tmp_path)
    (tmp_path / "images/train").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no images"):
        listed(tmp_path)
    with pytest.raises(UserError, match="layout 'x' is unknown"):
        layout_module("x")


def test_camvid(camvid: Path) -> None:
    listing = listed(camvid)
    assert (len(listing.train), len(listing.val)) == (367, 101)
    assert all(sample.mask for sample in listing.train.values())
    assert cv2.imread(listing.val[next(iter(listing.val))].image).shape == (360, 480, 3)
