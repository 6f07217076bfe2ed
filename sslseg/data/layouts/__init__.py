"""The layouts of datasets on disk. A layout is a module with ``detect``, ``facts`` and ``list_samples``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

from sslseg.data.description import DatasetDescription, Listing, Sample
from sslseg.data.layouts import cityscapes, folder, pairs, pascal_context, shapes, voc
from sslseg.data.layouts.base import Facts, image_files
from sslseg.errors import UserError

# In the order of detection: from the most specific to `folder`, which fits most datasets.
LAYOUTS: dict[str, ModuleType] = {
    "shapes": shapes,
    "cityscapes": cityscapes,
    "pascal-context": pascal_context,
    "voc": voc,
    "pairs": pairs,
    "folder": folder,
}

__all__ = ["LAYOUTS", "Facts", "detect", "layout_module", "list_samples"]


def layout_module(name: str) -> ModuleType:
    """Return the module of a layout; raise UserError if the name is unknown."""
    if name not in LAYOUTS:
        raise UserError(f"layout {name!r} is unknown; use one of: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def detect(root: Path) -> str:
    """Return the name of the layout that a folder (or a text file of pairs) has."""
    if not root.exists():
        raise UserError(f"dataset {root} does not exist; give the folder of your images with --data")
    for name, module in LAYOUTS.items():
        if module.detect(root):
            return name
    if root.is_dir() and not any(root.iterdir()):
        raise UserError(f"dataset {root} is an empty folder; give the folder of your images with --data")
    raise UserError(
        f"dataset {root} has no known layout; arrange it as images/train, images/val, masks/train and masks/val,"
        " give a text file of image-mask pairs as --data, or name one with --layout"
    )


def list_samples(description: DatasetDescription) -> Listing:
    """Return the images of a dataset, with those of ``unlabeled_dir`` among the training images, without masks.

    Raises:
        UserError: the folder is missing or empty, or does not fit its layout.
    """
    root = Path(description.root)
    if description.layout != "shapes" and not root.exists():
        raise UserError(f"dataset {root} does not exist; give its folder with --data")
    listing: Listing = layout_module(description.layout).list_samples(description)
    unlabeled = description.path("unlabeled_dir")
    if unlabeled is not None:
        listing = _with_unlabeled(listing, unlabeled)
    if not listing.train and not listing.val:
        raise UserError(
            f"dataset {root} holds no images in layout {description.layout!r}; give another folder or --layout"
        )
    return listing


def _with_unlabeled(listing: Listing, folder: Path) -> Listing:
    if not folder.is_dir():
        raise UserError(f"--unlabeled-dir {folder} is not a folder; give the folder of the images without masks")
    images = image_files(folder)
    if not images:
        raise UserError(f"--unlabeled-dir {folder} holds no images; give the folder of the images without masks")
    taken = {str(Path(sample.image).resolve()) for sample in (*listing.train.values(), *listing.val.values())}
    repeated = next((path for path in images.values() if str(Path(path).resolve()) in taken), None)
    if repeated:
        raise UserError(f"--unlabeled-dir {folder} holds {repeated}, which is part of the dataset already; move it out")
    extra = {f"unlabeled/{key}": Sample(f"unlabeled/{key}", path) for key, path in images.items()}
    collision = next((key for key in extra if key in listing.train or key in listing.val), None)
    if collision:
        raise UserError(
            f"--unlabeled-dir {folder}: id {collision!r} is taken by an image of the dataset; rename a folder"
        )
    return replace(listing, train=dict(sorted({**listing.train, **extra}.items())))
