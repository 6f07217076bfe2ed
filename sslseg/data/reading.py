"""Reading any image as BGR and any mask as class indices."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np

from sslseg.data.description import DatasetDescription
from sslseg.data.labels import ignore_value
from sslseg.errors import UserError

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif"})
INVALID = 65534
INDEX_VALUES, COLOR_VALUES = 1 << 16, 1 << 24

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_GRAY, PNG_PALETTE = 0, 3


def read_image(path: str | Path) -> np.ndarray:
    """Return an image as H x W x 3 uint8 BGR; gray is repeated, alpha dropped, 16 bits are scaled to 8.

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    data = _read_bytes(path, "image")
    image = _decode(data, cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"image {path} cannot be decoded: the file is damaged or not an image; replace or remove it")
    return image if image.dtype == np.uint8 else cv2.convertScaleAbs(image)


def read_mask(path: str | Path, table: np.ndarray) -> np.ndarray:
    """Return a mask as H x W class indices and ignore values, uint8 (uint16 over 255 classes).

    Args:
        table: ``label_table`` of the dataset.

    Raises:
        UserError: the file is missing, cannot be decoded, or holds values that belong to no class.
    """
    raw = read_raw_mask(path, color=len(table) == COLOR_VALUES)
    narrow = table.dtype == np.uint16
    # OpenCV does the same look-up many times faster, for bytes only.
    mask = cv2.LUT(raw, table[:256]) if narrow and raw.dtype == np.uint8 else table[raw]
    if (mask == INVALID).any():
        raise UserError(_out_of_range(path, np.unique(raw[mask == INVALID]), table))
    return mask.astype(np.uint8 if narrow else np.uint16)


def read_raw_mask(path: str | Path, *, color: bool = False) -> np.ndarray:
    """Return the raw values of a mask file, H x W: palette or class indices, or 0xRRGGBB with ``color``."""
    data = _read_bytes(path, "mask")
    raw = _decode_mask(data)
    if raw is None:
        raise UserError(f"mask {path} cannot be decoded: the file is damaged or not an image; replace or remove it")
    if color:
        return _color_codes(data, raw, path)
    if raw.ndim == 3:
        channels = raw[..., :3] if raw.shape[2] >= 3 else raw[..., :1]
        if (channels != channels[..., :1]).any():
            raise UserError(
                f"mask {path} is color-coded, not class indices; list its colors in class_dict.csv"
                " (header name,r,g,b) in the dataset's folder and run `sslseg init` again"
            )
        raw = channels[..., 0]
    if raw.dtype.kind not in "bui":
        raise UserError(f"mask {path} holds {raw.dtype} values; save it as 8- or 16-bit class indices")
    if raw.dtype.kind == "i" or raw.dtype.itemsize > 2:
        if raw.min() < 0 or raw.max() >= INDEX_VALUES:
            raise UserError(f"mask {path} holds values from {raw.min()} to {raw.max()}; class indices are 0..65535")
        raw = raw.astype(np.uint16)
    return np.ascontiguousarray(raw, np.uint8) if raw.dtype == bool else np.ascontiguousarray(raw)


def label_table(description: DatasetDescription) -> np.ndarray:
    """Return the table from raw mask value to class, ignore value or ``INVALID``.

    It has 65,536 entries (16.8 million for color-coded masks) of uint16 (uint32 over 255 classes). The raw values of the
    classes are 0, 1, 2, ... without the ignore index, or those of the option ``values``, or 0xRRGGBB of the palette with
    ``mask_format = "color"``. The option ``ignored_values`` lists further raw values to ignore.
    """
    color = description.options.get("mask_format") == "color"
    dtype = np.uint16 if description.num_classes <= 255 else np.uint32
    table = np.full(COLOR_VALUES if color else INDEX_VALUES, INVALID, dtype)
    table[_class_values(description)] = np.arange(description.num_classes)
    ignored = {*description.options.get("ignored_values", ()), description.ignore_index} - {None}
    if not all(isinstance(value, int) and 0 <= value < len(table) for value in ignored):
        raise UserError(
            f"dataset {description.name!r}: 'ignored_values' must be raw mask values in 0..{len(table) - 1}"
        )
    table[sorted(ignored)] = ignore_value(description.num_classes)
    return table


def _class_values(description: DatasetDescription) -> list[int]:
    count = description.num_classes
    where = f"dataset {description.name!r}"
    if description.options.get("mask_format") == "color":
        values = [red << 16 | green << 8 | blue for red, green, blue in description.palette]
        if len(set(values)) != count:
            raise UserError(f"{where}: two classes have the same color; color-coded masks need one color each")
    elif "values" in description.options:
        values = description.options["values"]
        usable = all(isinstance(value, int) and 0 <= value < INDEX_VALUES for value in values)
        if not usable or len(values) != count or len(set(values)) != count:
            raise UserError(
                f"{where}: option 'values' needs {count} different raw values in 0..65535, one for each class"
            )
    else:
        values = [value for value in range(count + 1) if value != description.ignore_index][:count]
    return values


def png_header(data: bytes) -> tuple[int, int] | None:
    """Return (bit depth, color type) of a PNG, None for other files."""
    if len(data) < 26 or not data.startswith(PNG_SIGNATURE):
        return None
    return struct.unpack_from("BB", data, 24)


def palette_colors(path: str | Path) -> list[tuple[int, int, int]]:
    """Return the palette of an image file, [] where it has none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            values = image.getpalette() if image.mode == "P" else None
    except (OSError, ValueError, SyntaxError):
        return []
    values = values or []
    return [(values[i], values[i + 1], values[i + 2]) for i in range(0, len(values) - 2, 3)]


def _read_bytes(path: str | Path, kind: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{kind} {path} does not exist; restore it, or make a new split without it") from error
    except OSError as error:
        raise UserError(f"{kind} {path} cannot be read: {error.strerror}") from error


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    if not data:
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _decode_mask(data: bytes) -> np.ndarray | None:
    header = png_header(data)
    if header is None or header[1] == PNG_PALETTE:
        # OpenCV would turn palette indices into colors.
        return _decode_pil(data)
    raw = _decode(data, cv2.IMREAD_UNCHANGED)
    if raw is not None and header[1] == PNG_GRAY and header[0] < 8:
        # Decoders stretch 1-, 2- and 4-bit gray to 0..255; the class indices are the values before that.
        return raw // (255 // ((1 << header[0]) - 1))
    return raw


def _decode_pil(data: bytes) -> np.ndarray | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            array = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return array[..., ::-1] if array.ndim == 3 and array.shape[2] == 3 else array


def _color_codes(data: bytes, raw: np.ndarray, path: str | Path) -> np.ndarray:
    header = png_header(data)
    bgr: np.ndarray | None = raw
    if raw.ndim == 2 and (header is None or header[1] == PNG_PALETTE):
        bgr = _decode(data, cv2.IMREAD_COLOR)
    elif raw.ndim == 2:
        bgr = np.repeat(raw[..., None], 3, axis=2)
    if bgr is None or bgr.dtype != np.uint8 or bgr.shape[2] < 3:
        raise UserError(f"mask {path} is not an 8-bit RGB image, as color-coded masks must be")
    blue, green, red = (bgr[..., channel].astype(np.uint32) for channel in range(3))
    return red << 16 | green << 8 | blue


def _out_of_range(path: str | Path, values: np.ndarray, table: np.ndarray) -> str:
    color = len(table) == COLOR_VALUES
    shown = ", ".join(f"#{value:06x}" if color else str(value) for value in values[:5])
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    lossy = " (JPEG cannot hold masks: it changes the values)" if str(path).lower().endswith((".jpg", ".jpeg")) else ""
    return (
        f"mask {path} holds {'color' if color else 'value'} {shown}{more}, which no class has{lossy};"
        " fix the mask, or the classes or ignore_index of the dataset (`sslseg init --force`)"
    )
