"""Copy a folder of images and masks at another size: python tools/resize_dataset.py DATA OUT --factor 0.5.

Some papers train and evaluate Cityscapes at half size. Images shrink by area averaging, masks (PNG under a folder whose
name tells it) take the nearest pixel, so every label stays one of the labels; other files are copied. What is there already is kept.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import cv2
from rich.progress import track

from sslseg.data.reading import read_image, read_raw_mask

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
MASK_FOLDERS = ("mask", "label", "annot", "gtfine", "segmentation")


def is_mask(path: Path) -> bool:
    """Tell whether a file, by its path below the dataset, is a mask."""
    return any(word in part.lower() for part in path.parent.parts for word in MASK_FOLDERS)


def resize(source: Path, target: Path, factor: float, *, mask: bool) -> None:
    """Write ``source`` at ``factor`` times its size; a palette PNG becomes its indices."""
    image = read_raw_mask(source, color=False) if mask else read_image(source)
    size = tuple(max(round(side * factor), 1) for side in image.shape[1::-1])
    cv2.imwrite(str(target), cv2.resize(image, size, interpolation=cv2.INTER_NEAREST if mask else cv2.INTER_AREA))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--factor", type=float, required=True)
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"{options.data} is not a folder")
    files = [path for path in sorted(options.data.rglob("*")) if path.is_file()]
    for path in track(files, f"x {options.factor:g}"):
        name = path.relative_to(options.data)
        target = options.out / name
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in IMAGES:
            resize(path, target, options.factor, mask=is_mask(name))
        else:
            shutil.copyfile(path, target)


if __name__ == "__main__":
    main()
