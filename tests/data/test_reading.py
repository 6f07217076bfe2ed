from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sslseg.data.description import DatasetDescription
from sslseg.data.labels import color_map, ignore_value
from sslseg.data.reading import label_table, read_image, read_mask
from sslseg.errors import UserError


def description(classes: int = 3, ignore: int | None = 255, **options: object) -> DatasetDescription:
    names = tuple(f"class_{index}" for index in range(classes))
    return DatasetDescription("folder", "/nowhere", "set", names, color_map(classes), ignore, dict(options))


def test_ignore_value_changes_above_255_classes() -> None:
    assert [ignore_value(count) for count in (1, 255, 256, 65534)] == [255, 255, 65535, 65535]
    for count in (0, 65535):
        with pytest.raises(UserError, match="out of range"):
            ignore_value(count)


def test_colors_are_different() -> None:
    assert len(set(color_map(1000))) == 1000
    assert color_map(3) == ((128, 0, 0), (0, 128, 0), (128, 128, 0))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
def test_images_become_three_bytes(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    cv2.imwrite(str(path), np.full(shape, 77, np.uint8))
    image = read_image(path)
    assert image.shape == (5, 7, 3)
    assert image.dtype == np.uint8
    assert (image == 77).all()


def test_16_bit_images_are_scaled(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 4), 0x8000, np.uint16))
    assert (read_image(tmp_path / "a.png") == 0x80).all()


@pytest.mark.parametrize("kind", ["8", "16", "repeated", "palette", "tiff16"])
def test_masks_of_every_kind_read_alike(tmp_path: Path, kind: str) -> None:
    raw = np.array([[0, 1], [2, 11]], np.uint8)
    path = tmp_path / ("mask.tif" if kind == "tiff16" else "mask.png")
    if kind == "palette":
        picture = Image.fromarray(raw, mode="P")
        picture.putpalette([200, 10, 10, 0, 200, 0, 0, 0, 200] + [9] * (253 * 3))
        picture.save(path)
    else:
        wide = raw.astype(np.uint16) if kind.endswith("16") else raw
        cv2.imwrite(str(path), np.repeat(wide[..., None], 3, 2) if kind == "repeated" else wide)
    mask = read_mask(path, label_table(description(ignore=11)))
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 1], [2, 255]]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_narrow_gray_png_keeps_its_values(tmp_path: Path, bits: int) -> None:
    """OpenCV and Pillow stretch such masks to 0..255."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8 // bits, 1, bits, 0, 0, 0, 0)
    values = [index % 2 for index in range(8 // bits)]
    byte = sum(value << (8 - bits * (index + 1)) for index, value in enumerate(values))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes([0, byte]))) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert read_mask(tmp_path / "a.png", label_table(description())).tolist() == [values]


def test_many_classes_need_16_bits(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 299, 65535]], np.uint16))
    mask = read_mask(tmp_path / "a.png", label_table(description(300, ignore=65535)))
    assert (mask.dtype, mask.tolist()) == (np.dtype(np.uint16), [[0, 299, 65535]])
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 255]], np.uint8))
    assert read_mask(tmp_path / "a.png", label_table(description(300, ignore=None))).tolist() == [[0, 255]]


def test_an_ignore_index_among_the_classes_moves_the_later_ones_down() -> None:
    assert label_table(description(3, ignore=1))[:5].tolist() == [0, 255, 1, 2, 65534]


def test_own_values_and_further_ignored_values() -> None:
    table = label_table(description(2, ignore=None, values=[7, 255], ignored_values=[0, 3]))
    assert table[[7, 255, 0, 3, 1]].tolist() == [0, 1, 255, 255, 65534]


@pytest.mark.parametrize(
    "options", [dict(values=[1]), dict(values=[1, 1]), dict(values=[1, "x"]), dict(ignored_values=[-1])]
)
def test_unusable_values_are_named(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="values"):
        label_table(description(2, **options))


def test_color_masks_by_their_colors(tmp_path: Path) -> None:
    table = label_table(description(2, ignore=0, mask_format="color"))
    rgb = np.array([[(128, 0, 0), (0, 128, 0), (0, 0, 0)]], np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), rgb[..., ::-1])
    assert read_mask(tmp_path / "a.png", table).tolist() == [[0, 1, 255]]
    cv2.imwrite(str(tmp_path / "b.png"), rgb[..., ::-1] + 1)
    with pytest.raises(UserError, match=re.escape("#010101") + ".*which no class has"):
        read_mask(tmp_path / "b.png", table)


def test_color_masks_without_colors_say_what_to_do(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[(1, 2, 3)]], np.uint8))
    with pytest.raises(UserError, match=r"a\.png is color-coded.*class_dict\.csv"):
        read_mask(tmp_path / "a.png", label_table(description()))


def test_values_out_of_range_are_named_with_the_file(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 7, 9]], np.uint8))
    with pytest.raises(UserError, match=r"a\.png holds value 7, 9, which no class has"):
        read_mask(tmp_path / "a.png", label_table(description()))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, fraction: float) -> None:
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 3, (200, 200), np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(UserError, match=f"image .*{re.escape(path.name)} cannot be decoded"):
        read_image(path)
    with pytest.raises(UserError, match=f"mask .*{re.escape(path.name)} cannot be decoded"):
        read_mask(path, label_table(description()))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image .*gone\.png does not exist"):
        read_image(tmp_path / "gone.png")


def test_fingerprint_does_not_depend_on_the_place() -> None:
    base = description(unlabeled_dir="/a")
    moved = DatasetDescription.from_dict({**base.to_dict(), "root": "/else", "options": {"unlabeled_dir": "/b"}})
    assert moved.fingerprint() == base.fingerprint()
    assert description(ignore=0).fingerprint() != base.fingerprint()
    assert DatasetDescription.from_dict(base.to_dict()) == base
