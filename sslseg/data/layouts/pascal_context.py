"""PASCAL-Context with 59 classes and background, arranged as by mmseg's tools."""

from __future__ import annotations

from pathlib import Path

from sslseg.data.description import DatasetDescription, Listing
from sslseg.data.layouts import voc
from sslseg.data.layouts.base import Facts, image_files, listed_samples, mmseg_facts, read_ids

LISTS = Path("ImageSets") / "SegmentationContext"
MASKS = "SegmentationClassContext"


def detect(root: Path) -> bool:
    inner = voc.home(root)
    return inner is not None and (inner / LISTS).is_dir() and (inner / MASKS).is_dir()


def facts(root: Path) -> Facts:
    return mmseg_facts("PascalContextDataset")


def list_samples(description: DatasetDescription) -> Listing:
    inner = voc.required_home(description)
    images, masks = image_files(inner / "JPEGImages"), image_files(inner / MASKS)
    train_list, val_list = (inner / LISTS / f"{name}.txt" for name in ("train", "val"))
    val = listed_samples(read_ids(val_list), images, masks, where=val_list)
    listed = [sample_id for sample_id in dict.fromkeys(read_ids(train_list)) if sample_id not in val]
    return Listing(listed_samples(listed, images, masks, where=train_list), val, tuple(listed))
