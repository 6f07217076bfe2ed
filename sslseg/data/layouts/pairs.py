"""A text file of image-mask pairs, and another for validation; a line with an image alone is an unlabeled image."""

from __future__ import annotations

import os
from pathlib import Path

from sslseg.data.description import DatasetDescription, Listing, Sample
from sslseg.data.layouts.base import Facts, is_image, stem
from sslseg.errors import UserError

Pair = tuple[Path, Path | None]
SEPARATORS = ("\t", ",", None)


def detect(root: Path) -> bool:
    return root.is_file()


def facts(root: Path) -> Facts:
    """``root`` is the text file; a file beside it with "val" for "train" in its name holds the validation pairs."""
    options = dict(train_pairs=root.name)
    sibling = root.with_name(root.name.replace("train", "val"))
    if sibling != root and sibling.is_file():
        options["val_pairs"] = sibling.name
    return Facts(options=options)


def list_samples(description: DatasetDescription) -> Listing:
    train_list, val_list = description.path("train_pairs"), description.path("val_pairs")
    if train_list is None:
        raise UserError(
            f"dataset {description.name!r}: layout pairs needs the option train_pairs; give the text file with --data"
        )
    train = read_pairs(train_list)
    val = read_pairs(val_list) if val_list is not None else {}
    if not train and not val:
        return Listing({}, {})
    repeated = next((image for image in val if image in train), None)
    if repeated:
        raise UserError(f"{val_list} names {repeated}, which {train_list} has too; remove it from one of them")
    base = os.path.commonpath([str(image.parent) for image in (*train, *val)])
    return Listing(_samples(train, base), _samples(val, base))


def read_pairs(path: Path) -> dict[Path, Path | None]:
    """Return ``{image: mask or None}`` of a text file; paths are relative to it and separated by tab, comma or space."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"pairs {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"pairs {path} is not UTF-8 text; save it as one image-mask pair a line") from error
    pairs: dict[Path, Path | None] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            image, mask = _parse(line.strip(), path, number)
            if image in pairs:
                raise UserError(f"{path}:{number}: image {image} is named twice; remove one of the lines")
            pairs[image] = mask
    return pairs


def _parse(line: str, path: Path, number: int) -> Pair:
    if is_image(line) and (path.parent / line).is_file():
        return _absolute(line, path), None
    separator = next(mark for mark in SEPARATORS if mark is None or mark in line)
    fields = [field.strip() for field in line.split(separator)]
    if not 1 <= len(fields) <= 2 or not all(map(is_image, map(os.path.basename, filter(None, fields)))):
        raise UserError(
            f"{path}:{number}: {line[:80]!r} is not an image-mask pair; separate the two paths by a tab, comma or space"
        )
    image = _absolute(fields[0], path)
    mask = _absolute(fields[1], path) if len(fields) == 2 and fields[1] else None
    for file in filter(None, (image, mask)):
        if not file.is_file():
            raise UserError(f"{path}:{number}: {file} does not exist; paths are relative to the folder of {path.name}")
    return image, mask


def _absolute(field: str, path: Path) -> Path:
    return Path(os.path.normpath(path.resolve().parent / field))


def _samples(pairs: dict[Path, Path | None], base: str) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for image, mask in pairs.items():
        sample_id = stem(Path(os.path.relpath(image, base)).as_posix())
        if sample_id in samples:
            other = samples[sample_id].image
            raise UserError(f"{other} and {image} differ in their extension only; remove or rename one of them")
        samples[sample_id] = Sample(sample_id, str(image), None if mask is None else str(mask))
    return dict(sorted(samples.items()))
