"""A folder of images and a folder of masks, with folders for train and val in them or lists of ids beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sslseg.data.description import DatasetDescription, Listing, Sample
from sslseg.data.layouts.base import Facts, first_folder, image_files, read_ids, stem
from sslseg.data.layouts.suffixes import detect_suffixes
from sslseg.errors import UserError

IMAGES = ("images", "image", "imgs", "img", "img_dir", "JPEGImages")
MASKS = (
    "masks",
    "mask",
    "labels",
    "label",
    "annotations",
    "annotation",
    "ann_dir",
    "gt",
    "SegmentationClass",
)
TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "test", "testing")
SUBSET_NAMES = {"train": TRAIN, "val": VAL}
LIST_FOLDERS = (".", "lists", "splits", "ImageSets/Segmentation", "ImageSets")


@dataclass(frozen=True)
class Folders:
    """The folders of a dataset; ``flat``: one folder of images, which lists divide into train and val."""

    train_images: Path
    train_masks: Path | None
    val_images: Path | None = None
    val_masks: Path | None = None
    flat: bool = False


def find_folders(root: Path) -> Folders | None:
    """Return the folders of a dataset: ``images/train``, ``train/images`` or one flat ``images``; None without any."""
    images, masks = first_folder(root, IMAGES), first_folder(root, MASKS)
    if images is not None:
        train = first_folder(images, TRAIN)
        if train is None:
            return Folders(images, masks, flat=True)
        val = first_folder(images, VAL)
        inner = (lambda names: None) if masks is None else (lambda names: first_folder(masks, names))
        return Folders(train, inner(TRAIN), val, inner(VAL))
    train, val = first_folder(root, TRAIN), first_folder(root, VAL)
    if train is None or (images := first_folder(train, IMAGES)) is None:
        return None
    if val is None:
        return Folders(images, first_folder(train, MASKS))
    return Folders(images, first_folder(train, MASKS), first_folder(val, IMAGES), first_folder(val, MASKS))


def detect(root: Path) -> bool:
    return root.is_dir() and find_folders(root) is not None


def facts(root: Path) -> Facts:
    """Return the suffixes of images and masks among the options."""
    folders = required_folders(root)
    options: dict[str, str] = {}
    if folders.train_masks is not None:
        images, masks = image_files(folders.train_images), image_files(folders.train_masks)
        if images and masks:
            image_suffix, mask_suffix = detect_suffixes(images, masks, where=f"dataset {root}")
            options = dict(image_suffix=image_suffix, mask_suffix=mask_suffix)
    return Facts({key: value for key, value in options.items() if value})


def required_folders(root: Path) -> Folders:
    folders = find_folders(root)
    if folders is None:
        raise UserError(
            f"dataset {root} has no folder of images; arrange it as images/train, images/val, masks/train and masks/val"
        )
    return folders


def list_samples(description: DatasetDescription) -> Listing:
    root = Path(description.root)
    folders = required_folders(root)
    image_suffix = str(description.options.get("image_suffix", ""))
    mask_suffix = str(description.options.get("mask_suffix", ""))
    train = _samples(folders.train_images, folders.train_masks, image_suffix, mask_suffix)
    if folders.flat:
        return _by_lists(train, description, image_suffix)
    val = (
        {} if folders.val_images is None else _samples(folders.val_images, folders.val_masks, image_suffix, mask_suffix)
    )
    if val.keys() & train.keys():
        # Both are numbered from 0001 on: validation ids need a prefix.
        val = {f"val/{key}": Sample(f"val/{key}", sample.image, sample.mask) for key, sample in val.items()}
    return Listing(train, val)


def _samples(images: Path, masks: Path | None, image_suffix: str, mask_suffix: str) -> dict[str, Sample]:
    found = image_files(masks) if masks is not None else {}
    samples = {}
    for key, path in image_files(images).items():
        if key.endswith(image_suffix):
            sample_id = key.removesuffix(image_suffix)
            samples[sample_id] = Sample(sample_id, path, found.get(sample_id + mask_suffix))
    return dict(sorted(samples.items()))


def _by_lists(samples: dict[str, Sample], description: DatasetDescription, image_suffix: str) -> Listing:
    root = Path(description.root)
    lists = {key: description.path(f"{key}_list") or _find_list(root, names) for key, names in SUBSET_NAMES.items()}
    ids = {key: None if path is None else _listed(path, samples, image_suffix) for key, path in lists.items()}
    val = ids["val"] or []
    listed = ids["train"] if ids["train"] is not None else [key for key in samples if key not in set(val)]
    both = next((key for key in val if key in set(listed)), None)
    if both is not None:
        raise UserError(f"{lists['val']} names {both!r}, which {lists['train']} has too; remove it from one of them")
    order = tuple(listed) if ids["train"] is not None else ()
    return Listing({key: samples[key] for key in sorted(listed)}, {key: samples[key] for key in sorted(val)}, order)


def _find_list(root: Path, names: tuple[str, ...]) -> Path | None:
    places = (root / folder / f"{name}.txt" for folder in LIST_FOLDERS for name in names)
    return next((path for path in places if path.is_file()), None)


def _listed(path: Path, samples: dict[str, Sample], image_suffix: str) -> list[str]:
    listed = []
    for line in read_ids(path):
        key = stem(line).removesuffix(image_suffix)
        match = next((name for name in (key, key.rpartition("/")[2]) if name in samples), None)
        if match is None:
            raise UserError(f"list {path} names {line!r}, which has no image; complete the dataset or fix the list")
        listed.append(match)
    return list(dict.fromkeys(listed))
