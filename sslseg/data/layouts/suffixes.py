"""How the names of images and of their masks differ: ``x_leftImg8bit`` and ``x_gtFine_labelIds``, ``x`` and ``x_mask``."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Collection

from sslseg.errors import UserError

SAMPLE = 200
SEPARATORS = "_-. "


def detect_suffixes(images: Collection[str], masks: Collection[str], *, where: str) -> tuple[str, str]:
    """Return (image suffix, mask suffix) so that ``id + suffix`` are the names of most masks and their images.

    Args:
        images, masks: relative paths without extensions.
        where: the dataset, for messages.

    Raises:
        UserError: no mask belongs to an image, or two mask suffixes fit equally well.
    """
    ordered, present = sorted(images), set(images)
    sampled = sorted(masks)[:: max(1, len(masks) // SAMPLE)]
    candidates = {pair for mask in sampled if (pair := _difference(mask, ordered)) is not None}
    covered = {pair: _coverage(pair, present, masks) for pair in candidates}
    best = max(covered.values(), default=0)
    if not best:
        image, mask = next(iter(ordered), "none"), next(iter(sorted(masks)), "none")
        raise UserError(
            f"{where}: no mask has the name of an image (first image {image!r}, first mask {mask!r});"
            " rename them, or give a text file of image-mask pairs as --data"
        )
    # Half as many is ambiguous already: of two kinds of mask, some of one kind may be missing.
    rivals = sorted(pair for pair in covered if covered[pair] * 2 > best)
    if len(rivals) > 1 and ("", "") not in rivals:
        shown = ", ".join(repr(mask) for _, mask in rivals)
        raise UserError(f"{where}: masks may end in {shown}; choose one with --mask-suffix (option mask_suffix)")
    return ("", "") if ("", "") in rivals else rivals[0]


def _difference(mask: str, ordered: list[str]) -> tuple[str, str] | None:
    """Return the suffixes of ``mask`` and of the image that shares its longest prefix."""
    position = bisect_left(ordered, mask)
    neighbors = ordered[max(position - 1, 0) : position + 1]
    prefixes = [(len(os.path.commonprefix([image, mask])), image) for image in neighbors]
    length, image = max(prefixes, default=(0, ""))
    if not length or "/" in image[length:] or "/" in mask[length:]:
        return None
    if length < len(image) and length < len(mask):
        # `x_mat` and `x_mask` differ in whole words: go back to the beginning of the word.
        name_start = mask.rfind("/", 0, length) + 1
        cut = max(mask.rfind(mark, name_start, length) for mark in SEPARATORS)
        length = cut if cut > name_start else length
    return image[length:], mask[length:]


def _coverage(pair: tuple[str, str], images: set[str], masks: Collection[str]) -> int:
    image_suffix, mask_suffix = pair
    return sum(
        mask.endswith(mask_suffix) and mask[: len(mask) - len(mask_suffix)] + image_suffix in images for mask in masks
    )
