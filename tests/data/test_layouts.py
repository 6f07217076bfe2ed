"""Layouts: each kind of dataset is recognised, listed and read from real files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sslseg.data.description import DatasetDescription, Listing
from sslseg.data.files import label_table, read_mask
from sslseg.data.layouts import detect, list_samples
from sslseg.errors import UserError
from sslseg.init import describe

RNG = np.random.default_rng(0)


def image(path: Path, size: tuple[int, int] = (12, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), RNG.integers(0, 255, (*size, 3)).astype(np.uint8))


def mask(path: Path, values: list[int], size: tuple[int, int] = (12, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.resize(np.array(values, np.uint16 if max(values) > 255 else np.uint8), size)
    cv2.imwrite(str(path), array)


def make_voc(folder: Path, *, fine: int, augmented: int) -> Path:
    root = folder / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    fine_ids = [f"2007_{n:06d}" for n in range(fine)]
    more = [f"2008_{n:06d}" for n in range(augmented - fine)]
    val = ["2009_000000", "2009_000001"]
    for name in (*fine_ids, *more, *val):
        image(root / "JPEGImages" / f"{name}.jpg")
    for name in (*fine_ids, *val):
        mask(root / "SegmentationClass" / f"{name}.png", [0, 1, 20, 255])
    for name in (*fine_ids, *more, *val):
        mask(root / "SegmentationClassAug" / f"{name}.png", [0, 1, 20, 255])
    (lists / "train.txt").write_text("\n".join(fine_ids))
    (lists / "val.txt").write_text("\n".join(val))
    return folder / "VOCdevkit"


def listed(description: DatasetDescription) -> Listing:
    listing = list_samples(description)
    for sample in (*listing.train.values(), *listing.val.values()):
        assert Path(sample.image).is_file()
        if sample.mask is not None:
            read_mask(sample.mask, label_table(description))
    return listing


def test_voc_blender_and_classic(tmp_path: Path) -> None:
    root = make_voc(tmp_path, fine=3, augmented=7)
    assert detect(root) == "voc"
    found = describe(root).description
    assert (found.num_classes, found.classes[0], found.ignore_index) == (21, "background", 255)
    assert len(listed(found).train) == 7
    assert len(listed(found).val) == 2
    classic = DatasetDescription(**{**found.__dict__, "options": dict(family="classic")})
    assert len(listed(classic).train) == 3


def test_cityscapes_label_ids_become_train_ids(tmp_path: Path) -> None:
    for side, city in (("train", "jena"), ("val", "ulm")):
        image(tmp_path / "leftImg8bit" / side / city / f"{city}_000000_000019_leftImg8bit.png")
        mask(tmp_path / "gtFine" / side / city / f"{city}_000000_000019_gtFine_labelIds.png", [0, 7, 33, 6])
    found = describe(tmp_path).description
    assert (found.layout, found.num_classes) == ("cityscapes", 19)
    listing = listed(found)
    assert list(listing.train) == ["jena/jena_000000_000019"]
    values = read_mask(str(listing.train["jena/jena_000000_000019"].mask), label_table(found))
    np.testing.assert_array_equal(values[0, :4], [255, 0, 18, 255])
    for side, city in (("train", "jena"), ("val", "ulm")):
        mask(tmp_path / "gtFine" / side / city / f"{city}_000000_000019_gtFine_labelTrainIds.png", [0, 18, 255])
    trained = describe(tmp_path).description
    values = read_mask(str(listed(trained).train["jena/jena_000000_000019"].mask), label_table(trained))
    np.testing.assert_array_equal(values[0, :3], [0, 18, 255])


def test_pascal_context(tmp_path: Path) -> None:
    root = tmp_path / "VOC2010"
    for name in ("a", "b"):
        image(root / "JPEGImages" / f"{name}.jpg")
        mask(root / "SegmentationClassContext" / f"{name}.png", [0, 59])
    lists = root / "ImageSets" / "SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    found = describe(root).description
    assert (found.layout, found.num_classes) == ("pascal-context", 60)
    assert (list(listed(found).train), list(listed(found).val)) == (["a"], ["b"])


def test_pairs(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "v"):
        image(tmp_path / "pics" / f"{name}.jpg")
        mask(tmp_path / "truth" / f"{name}_gt.png", [0, 1, 2])
    (tmp_path / "train.txt").write_text("pics/a.jpg truth/a_gt.png\npics/b.jpg,truth/b_gt.png\npics/c.jpg\n")
    (tmp_path / "val.txt").write_text("pics/v.jpg\ttruth/v_gt.png\n")
    found = describe(tmp_path / "train.txt").description
    listing = listed(found)
    assert found.layout == "pairs"
    assert [sample.mask is not None for sample in listing.train.values()] == [True, True, False]
    assert len(listing.val) == 1


def test_folder_with_suffixes_and_nested_folders(tmp_path: Path) -> None:
    for side in ("train", "val"):
        for name in ("x/1", "y/2"):
            image(tmp_path / "images" / side / f"{name}_rgb.jpg")
            mask(tmp_path / "masks" / side / f"{name}_label.png", [0, 1])
    found = describe(tmp_path).description
    assert found.options == dict(image_suffix="_rgb", mask_suffix="_label")
    listing = listed(found)
    assert all(sample.mask for sample in listing.train.values())
    assert len(listing.train) == len(listing.val) == 2


def test_one_folder_with_lists(tmp_path: Path) -> None:
    for name in "abc":
        image(tmp_path / "images" / f"{name}.png")
        mask(tmp_path / "masks" / f"{name}.png", [0, 1])
    (tmp_path / "train.txt").write_text("b\na\n")
    (tmp_path / "val.txt").write_text("c\n")
    listing = listed(describe(tmp_path).description)
    assert set(listing.train) == {"a", "b"}
    assert set(listing.val) == {"c"}


def test_unlabeled_images_from_a_folder_of_their_own(tmp_path: Path) -> None:
    image(tmp_path / "d" / "images" / "train" / "a.png")
    image(tmp_path / "d" / "images" / "val" / "v.png")
    mask(tmp_path / "d" / "masks" / "train" / "a.png", [0, 1])
    mask(tmp_path / "d" / "masks" / "val" / "v.png", [0, 1])
    image(tmp_path / "more" / "a.png")
    found = describe(tmp_path / "d", unlabeled_dir=tmp_path / "more").description
    listing = listed(found)
    assert {name: sample.mask is not None for name, sample in listing.train.items()} == {
        "a": True,
        "unlabeled/a": False,
    }


def test_palette_16_bit_and_foreign_ignore_masks(tmp_path: Path) -> None:
    image(tmp_path / "images" / "train" / "a.png")
    (tmp_path / "masks" / "train").mkdir(parents=True)
    picture = Image.fromarray(np.resize(np.array([0, 1, 2, 11], np.uint8), (12, 16)))
    picture.putpalette([*range(10, 250, 10)] + [0] * (768 - 24))
    picture.save(tmp_path / "masks" / "train" / "a.png")
    found = describe(tmp_path, ignore_index=11).description
    values = read_mask(str(tmp_path / "masks" / "train" / "a.png"), label_table(found))
    assert (found.num_classes, found.palette[1]) == (3, (40, 50, 60))
    np.testing.assert_array_equal(values[0, :4], [0, 1, 2, 255])
    mask(tmp_path / "masks" / "train" / "a.png", [0, 299, 65535])
    wide = describe(tmp_path, ignore_index=65535).description
    values = read_mask(str(tmp_path / "masks" / "train" / "a.png"), label_table(wide))
    assert (wide.num_classes, values.dtype) == (300, np.uint16)
    np.testing.assert_array_equal(values[0, :3], [0, 299, 65535])


def test_colour_coded_masks_with_a_class_dictionary(tmp_path: Path) -> None:
    image(tmp_path / "images" / "train" / "a.png")
    (tmp_path / "masks" / "train").mkdir(parents=True)
    colors = np.zeros((12, 16, 3), np.uint8)
    colors[:, 8:] = (200, 100, 50)  # BGR
    cv2.imwrite(str(tmp_path / "masks" / "train" / "a.png"), colors)
    with pytest.raises(UserError, match="colour-coded"):
        describe(tmp_path)
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nvoid,0,0,0\nroad,50,100,200\n")
    found = describe(tmp_path).description
    values = read_mask(str(tmp_path / "masks" / "train" / "a.png"), label_table(found))
    assert found.classes == ("void", "road")
    np.testing.assert_array_equal(values[0, [0, 15]], [0, 1])


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_corrupt_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    from sslseg.data.files import read_image, read_raw_mask

    for read in (read_image, read_raw_mask):
        with pytest.raises(UserError, match="x.png"):
            read(path)


def test_values_out_of_range_are_named(tmp_path: Path) -> None:
    mask(tmp_path / "m.png", [0, 1, 9])
    table = label_table(DatasetDescription("folder", "/", "d", ("a", "b"), ((0, 0, 0), (1, 1, 1))))
    with pytest.raises(UserError, match=r"m\.png.*9"):
        read_mask(tmp_path / "m.png", table)


def test_no_layout(tmp_path: Path) -> None:
    for root, message in {tmp_path / "no": "does not exist", tmp_path: "empty folder"}.items():
        with pytest.raises(UserError, match=message):
            detect(root)
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UserError, match="no known layout"):
        detect(tmp_path)


def test_camvid_as_a_new_user_has_it(camvid: Path) -> None:
    found = describe(camvid, ignore_index=11)
    assert (found.description.layout, found.description.num_classes) == ("folder", 11)
    assert (len(found.listing.train), len(found.listing.val)) == (367, 101)
    sample = next(iter(found.listing.train.values()))
    values = np.unique(read_mask(str(sample.mask), label_table(found.description)))
    assert set(values) <= {*range(11), 255}
