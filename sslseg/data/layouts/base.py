"""What the layouts share: finding image files, reading lists of ids, pairing ids with masks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sslseg.data.description import Sample
from sslseg.data.labels import Color
from sslseg.data.reading import IMAGE_EXTENSIONS
from sslseg.errors import UserError


@dataclass(frozen=True)
class Facts:
    """What a layout finds out without opening a mask; None or empty where that takes the masks or the user."""

    options: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    palette: tuple[Color, ...] | None = None
    ignore_index: int | None = None


def is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def stem(path: str) -> str:
    """Return a relative path without the extension of an image file, if it has one."""
    root, extension = os.path.splitext(path)
    return root if extension.lower() in IMAGE_EXTENSIONS else path


def image_files(folder: Path) -> dict[str, str]:
    """Return ``{relative path without extension: absolute path}`` of the images below ``folder``, sorted.

    Raises:
        UserError: two images differ in their extension only.
    """
    found: dict[str, str] = {}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(parent).relative_to(folder).as_posix()
        for name in filter(is_image, names):
            key = stem(name if relative == "." else f"{relative}/{name}")
            path = os.path.join(parent, name)
            if key in found:
                raise UserError(f"{found[key]} and {path} differ in their extension only; remove or rename one of them")
            found[key] = path
    return dict(sorted(found.items()))


def read_ids(path: Path) -> list[str]:
    """Return the first word of every line of a list of ids that belongs to a dataset."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"list {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"list {path} is not UTF-8 text; save it as one id a line") from error
    return [line.split()[0] for line in lines if line.strip()]


def listed_samples(
    ids: Iterable[str], images: dict[str, str], masks: dict[str, str], *, where: Path
) -> dict[str, Sample]:
    """Return the samples of ``ids`` in sorted order; raise UserError naming the list if an image is missing."""
    samples = {}
    for sample_id in sorted(ids):
        if sample_id not in images:
            raise UserError(
                f"list {where} names {sample_id!r}, which has no image; complete the dataset or fix the list"
            )
        samples[sample_id] = Sample(sample_id, images[sample_id], masks.get(sample_id))
    return samples


def first_folder(parent: Path, names: Iterable[str]) -> Path | None:
    """Return the first of ``names`` that is a folder in ``parent``, ignoring case."""
    if not parent.is_dir():
        return None
    present = {entry.name.lower(): entry for entry in sorted(parent.iterdir()) if entry.is_dir()}
    return next((present[name.lower()] for name in names if name.lower() in present), None)


def mmseg_facts(dataset: str, **options: Any) -> Facts:
    """Return the class names and the palette that mmseg has of a public dataset, with ignore index 255."""
    from sslseg.registry import register_modules

    register_modules()
    from mmseg.registry import DATASETS

    metainfo = DATASETS.get(dataset).METAINFO
    return Facts(options, tuple(metainfo["classes"]), tuple(tuple(color) for color in metainfo["palette"]), 255)
