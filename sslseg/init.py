"""Describing a dataset: its layout, classes and ignore index."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslseg.data.description import DatasetDescription, Listing
from sslseg.data.labels import IGNORE_INDEX, WIDE_IGNORE_INDEX, Color, color_map, default_palette
from sslseg.data.layouts import Facts, detect, layout_module, list_samples
from sslseg.data.reading import INDEX_VALUES, palette_colors, read_raw_mask
from sslseg.errors import UserError
from sslseg.files import write_text
from sslseg.progress import track

SAMPLE = 200
NAME_FILES = ("classes.txt", "labels.txt", "class_names.txt", "codes.txt")
COLOR_FILE = "class_dict.csv"


@dataclass(frozen=True)
class Findings:
    """A dataset's description, and what was found out about it.

    Attributes:
        pixels: number of pixels of each raw value 0..65535 in the sampled masks; zeros where masks are color-coded.
        masks: number of sampled masks.
        guessed: whether the ignore index is a guess.
    """

    description: DatasetDescription
    listing: Listing
    pixels: np.ndarray
    masks: int
    guessed: bool


def describe(
    data: Path,
    *,
    layout_name: str = "auto",
    ignore_index: int | None = None,
    classes: str | None = None,
    unlabeled_dir: Path | None = None,
    val_pairs: Path | None = None,
    mask_suffix: str | None = None,
    name: str | None = None,
) -> Findings:
    """Describe the dataset at ``data`` from its folders and from a sample of its masks.

    Raises:
        UserError: no layout fits, no image has a mask, or names and masks disagree.
    """
    root = data.absolute()
    kind = detect(root) if layout_name == "auto" else layout_name
    module = layout_module(kind)
    given = dict(unlabeled_dir=_absolute(unlabeled_dir), val_pairs=_absolute(val_pairs), mask_suffix=mask_suffix)
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if mask_suffix is None or kind != "folder":
        facts = module.facts(root)
        options = facts.options | options
    else:
        facts = Facts()
    folder = root.parent if kind == "pairs" else root
    # Placeholders until the masks show how many classes there are.
    placeholders = facts.classes or ("class_0", "class_1")
    draft = DatasetDescription(
        kind, str(folder), name or root.stem, placeholders, color_map(len(placeholders)), None, options
    )
    listing = list_samples(draft)
    masks = _sample_masks(listing)
    names, colors = _names(folder, classes)
    if facts.classes is None and names is not None and colors is not None and _colored(masks[0]):
        options |= dict(mask_format="color")
        pixels = np.zeros(INDEX_VALUES, np.int64)
    else:
        pixels = _count_values(masks)
    values = [int(value) for value in np.flatnonzero(pixels)]
    if facts.classes is None and ignore_index is None and values == [0, IGNORE_INDEX] and len(names or "ab") == 2:
        # Black and white masks of one object: here 255 is a class, not the ignore index.
        options |= dict(values=values)
        names = names or ["background", "foreground"]
    guessed = ignore_index is None and "values" not in options and facts.ignore_index is None
    if ignore_index is None and "values" not in options:
        ignore_index = facts.ignore_index if facts.classes else _guess_ignore(pixels, len(names) if names else None)
    chosen = facts.classes or tuple(names or _numbered(pixels, ignore_index, root))
    palette = facts.palette or tuple(colors or _png_colors(masks[0], len(chosen)) or default_palette(chosen))
    description = DatasetDescription(kind, str(folder), name or root.stem, chosen, palette, ignore_index, options)
    return Findings(description, listing, pixels, len(masks), guessed)


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _sample_masks(listing: Listing) -> list[str]:
    """Return up to ``SAMPLE`` mask files, evenly spaced; raise UserError if there are none."""
    masks = [sample.mask for sample in (*listing.train.values(), *listing.val.values()) if sample.mask is not None]
    if not masks:
        raise UserError(
            "no image of the dataset has a mask, so there is nothing to train on; add masks, or check --layout"
        )
    return [masks[index] for index in np.linspace(0, len(masks) - 1, min(SAMPLE, len(masks))).round().astype(int)]


def _colored(path: str) -> bool:
    try:
        read_raw_mask(path)
    except UserError:
        return True
    return False


def _count_values(masks: Sequence[str]) -> np.ndarray:
    def count(path: str) -> np.ndarray:
        return np.bincount(read_raw_mask(path).ravel(), minlength=INDEX_VALUES)

    pixels = np.zeros(INDEX_VALUES, np.int64)
    with ThreadPoolExecutor() as pool:
        for values in track(pool.map(count, masks), "read masks", total=len(masks)):
            pixels += values
    return pixels


def _names(root: Path, given: str | None) -> tuple[list[str] | None, list[Color] | None]:
    """Return class names, ``given`` or from a file of the dataset, and the colors if that is ``class_dict.csv``."""
    if given is not None and not Path(given).is_file():
        return [name.strip() for name in given.split(",") if name.strip()], None
    paths = [Path(given)] if given is not None else [root / name for name in (*NAME_FILES, COLOR_FILE)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None, None
    text = path.read_text()
    if path.suffix != ".csv":
        return [line.strip() for line in text.splitlines() if line.strip()], None
    rows = [row for row in csv.reader(text.splitlines()) if row]
    rows = [row for row in rows if len(row) < 4 or row[1].strip().isdigit()]
    colors = [(int(row[1]), int(row[2]), int(row[3])) for row in rows if len(row) >= 4]
    return [row[0].strip() for row in rows], colors if len(colors) == len(rows) else None


def _guess_ignore(pixels: np.ndarray, num_classes: int | None) -> int | None:
    """Guess which raw value means "no label": 255 or 65535 if they occur, or the value right after the named classes."""
    values = np.flatnonzero(pixels)
    for value in (IGNORE_INDEX, WIDE_IGNORE_INDEX):
        if value in values and (num_classes is None or value >= num_classes):
            return value
    beyond = values[values >= num_classes].tolist() if num_classes is not None else []
    return num_classes if beyond == [num_classes] else None


def _numbered(pixels: np.ndarray, ignore_index: int | None, root: Path) -> list[str]:
    """Return one class name for each value that the masks need, the ignore index left out."""
    values = [int(value) for value in np.flatnonzero(pixels) if value != ignore_index]
    if len(values) < 2:
        raise UserError(
            f"dataset {root}: its masks hold only the values {values}; segmentation needs two classes, check --ignore-index"
        )
    # Values beyond the ignore index move down by one, as `label_table` reads them.
    count = max(values) + (0 if ignore_index is not None and ignore_index < max(values) else 1)
    return [f"class_{index}" for index in range(count)]


def _png_colors(path: str, count: int) -> list[Color] | None:
    colors = palette_colors(path)[:count]
    return colors if len(colors) == count == len(set(colors)) else None


def toml_text(findings: Findings) -> str:
    """Return the text of ``sslseg.toml`` for a dataset."""
    found = findings.description
    lines = [
        "# Defaults of `sslseg` in this folder; flags override them. Written by `sslseg init`.",
        "",
        "[dataset]",
        f"layout = {json.dumps(found.layout)}",
        f"root = {json.dumps(found.root, ensure_ascii=False)}",
        f"name = {json.dumps(found.name, ensure_ascii=False)}",
        "classes = [" + ", ".join(json.dumps(name, ensure_ascii=False) for name in found.classes) + "]",
        f"palette = {json.dumps(found.palette)}  # RGB, by class",
    ]
    if found.ignore_index is None:
        lines.append('# ignore_index = 255  # the value in the masks that means "no label"; none was found')
    else:
        lines.append(f'ignore_index = {found.ignore_index}  # the value in the masks that means "no label"')
    if found.options:
        lines += ["", "[dataset.options]"]
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in found.options.items()]
    lines += [
        "",
        "[train]",
        '# method = "auto"   # the recommended one; `sslseg methods` lists all',
        '# model = "deeplabv3plus_lite0"   # a preset, or the path of your own mmseg config',
        "# iterations = 2000",
        "# batch_size = 8",
        "# crop = 320",
        "",
        "[folders]",
        '# splits = "splits"',
        '# runs = "runs"',
        "",
    ]
    return "\n".join(lines)


def write_toml(findings: Findings, path: Path, *, force: bool = False) -> Path:
    """Write ``sslseg.toml``; overwrite an existing one only with ``force``.

    Raises:
        UserError: it exists and ``force`` is off.
    """
    if path.exists() and not force:
        raise UserError(f"{path} exists; add --force to overwrite it, or edit it")
    write_text(path, toml_text(findings))
    return path
