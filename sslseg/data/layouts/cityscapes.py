"""Cityscapes: ``leftImg8bit/{train,val}/<city>`` and ``gtFine``, with train ids or with label ids mapped to them."""

from __future__ import annotations

from pathlib import Path

from sslseg.data.description import DatasetDescription, Listing, Sample
from sslseg.data.layouts.base import Facts, image_files, mmseg_facts
from sslseg.errors import UserError

IMAGES, MASKS = "leftImg8bit", "gtFine"
IMAGE_SUFFIX = "_leftImg8bit"
TRAIN_IDS, LABEL_IDS = "_gtFine_labelTrainIds", "_gtFine_labelIds"
# The label ids of the 19 classes that are trained and evaluated, in the order of their train ids; all others up to 33 are void.
CLASS_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
VOID_LABEL_IDS = tuple(value for value in range(34) if value not in CLASS_LABEL_IDS)


def detect(root: Path) -> bool:
    return (root / IMAGES / "train").is_dir() and (root / MASKS).is_dir()


def facts(root: Path) -> Facts:
    """Train ids are used where every labeled training image has them."""
    masks = image_files(root / MASKS / "train")
    labeled = {key.removesuffix(LABEL_IDS) for key in masks if key.endswith(LABEL_IDS)}
    trained = {key.removesuffix(TRAIN_IDS) for key in masks if key.endswith(TRAIN_IDS)}
    if trained and trained >= labeled:
        return mmseg_facts("CityscapesDataset", mask_suffix=TRAIN_IDS)
    return mmseg_facts(
        "CityscapesDataset",
        mask_suffix=LABEL_IDS,
        values=list(CLASS_LABEL_IDS),
        ignored_values=list(VOID_LABEL_IDS),
    )


def list_samples(description: DatasetDescription) -> Listing:
    root = Path(description.root)
    suffix = description.options.get("mask_suffix", LABEL_IDS)
    if not (root / IMAGES).is_dir():
        raise UserError(f"dataset {root} has no {IMAGES}; give the folder that holds {IMAGES} and {MASKS} with --data")
    train, val = (_samples(root / IMAGES / name, root / MASKS / name, suffix) for name in ("train", "val"))
    return Listing(train, val)


def _samples(images: Path, masks: Path, mask_suffix: str) -> dict[str, Sample]:
    found = image_files(masks)
    samples = {}
    for key, path in image_files(images).items():
        sample_id = key.removesuffix(IMAGE_SUFFIX)
        samples[sample_id] = Sample(sample_id, path, found.get(sample_id + mask_suffix))
    return dict(sorted(samples.items()))
