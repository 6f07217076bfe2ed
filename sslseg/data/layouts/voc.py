"""PASCAL VOC 2012: the classic 1,464 training masks, or the 10,582 "blender" ones that include SBD (SegmentationClassAug)."""

from __future__ import annotations

from pathlib import Path

from sslseg.data.description import DatasetDescription, Listing
from sslseg.data.layouts.base import Facts, image_files, listed_samples, mmseg_facts, read_ids
from sslseg.errors import UserError

CLASSIC, BLENDER = "classic", "blender"
HOMES = (".", "VOC2012", "VOCdevkit/VOC2012", "VOC2010", "VOCdevkit/VOC2010")
LISTS = Path("ImageSets") / "Segmentation"
FINE, AUGMENTED = "SegmentationClass", "SegmentationClassAug"


def home(root: Path) -> Path | None:
    """Return the folder that holds JPEGImages: ``root`` or VOCdevkit/VOC2012 inside it."""
    return next((root / inner for inner in HOMES if (root / inner / "JPEGImages").is_dir()), None)


def detect(root: Path) -> bool:
    inner = home(root)
    return (
        inner is not None and (inner / LISTS).is_dir() and any((inner / masks).is_dir() for masks in (FINE, AUGMENTED))
    )


def facts(root: Path) -> Facts:
    inner = home(root)
    augmented = inner is not None and (inner / AUGMENTED).is_dir()
    return mmseg_facts("PascalVOCDataset", family=BLENDER if augmented else CLASSIC)


def list_samples(description: DatasetDescription) -> Listing:
    inner = required_home(description)
    family = description.options.get("family", CLASSIC)
    if family not in (CLASSIC, BLENDER):
        raise UserError(
            f"dataset {description.name!r}: option family {family!r} is unknown; use {CLASSIC} or {BLENDER}"
        )
    images, fine = image_files(inner / "JPEGImages"), image_files(inner / FINE)
    val_list = inner / LISTS / "val.txt"
    val_ids = read_ids(val_list)
    if family == CLASSIC:
        train_list, masks = inner / LISTS / "train.txt", fine
        listed = read_ids(train_list)
    else:
        masks = image_files(inner / AUGMENTED)
        if not masks:
            raise UserError(f'dataset {inner} has no masks in {AUGMENTED}; add SBD\'s, or set family = "{CLASSIC}"')
        train_list, listed = _augmented_ids(inner, masks, set(val_ids))
    listed = [sample_id for sample_id in dict.fromkeys(listed) if sample_id not in set(val_ids)]
    train = listed_samples(listed, images, masks, where=train_list)
    return Listing(train, listed_samples(val_ids, images, {**masks, **fine}, where=val_list), tuple(listed))


def fine_ids(description: DatasetDescription) -> frozenset[str]:
    """Return the training ids with VOC's own fine masks, none where their list is missing."""
    inner = home(Path(description.root))
    path = None if inner is None else inner / LISTS / "train.txt"
    return frozenset(read_ids(path)) if path is not None and path.is_file() else frozenset()


def required_home(description: DatasetDescription) -> Path:
    inner = home(Path(description.root))
    if inner is None:
        raise UserError(f"dataset {description.root} has no JPEGImages; give VOCdevkit or its VOC2012 with --data")
    return inner


def _augmented_ids(inner: Path, masks: dict[str, str], val_ids: set[str]) -> tuple[Path, list[str]]:
    for name in ("trainaug.txt", "train_aug.txt"):
        path = inner / LISTS / name
        if path.is_file():
            # Some published lists hold "/JPEGImages/<id>.jpg <mask>" lines instead of ids.
            return path, [Path(line).stem for line in read_ids(path)]
    return inner / AUGMENTED, [sample_id for sample_id in masks if sample_id not in val_ids]
