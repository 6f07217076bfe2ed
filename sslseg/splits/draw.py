"""The random choice of labeled images, fixed by a seed."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from sslseg.data.description import DatasetDescription, Listing
from sslseg.errors import UserError
from sslseg.splits.stratify import stratified_order

DEFAULT_RATIO = "1/8"


def parse_ratio(text: str) -> Fraction:
    """Read ``1/8``, ``12.5%`` or ``0.125``; raise UserError unless it lies in (0, 1]."""
    try:
        ratio = Fraction(text.strip().rstrip("%")) / (100 if text.strip().endswith("%") else 1)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"--ratio {text!r} is not a valid ratio; write 1/8, 12.5% or 0.125") from error
    if not 0 < ratio <= 1:
        raise UserError(f"--ratio {text} is not above 0 and at most 1; for a number of images use --count")
    return ratio


def labeled_count(total: int, *, ratio: str | None = None, count: int | None = None) -> int:
    """Return how many of ``total`` images are labeled: ``count``, or the ratio rounded half up, at least 1."""
    if count is not None and ratio is not None:
        raise UserError("--ratio and --count exclude each other; give one")
    if count is not None:
        if not 1 <= count <= total:
            raise UserError(f"--count {count} is not between 1 and the {total} training images that have a mask")
        return count
    return max(int(parse_ratio(ratio or DEFAULT_RATIO) * total + Fraction(1, 2)), 1)


def draw_labeled(
    listing: Listing,
    dataset: DatasetDescription,
    *,
    ratio: str | None,
    count: int | None,
    seed: int,
    nested: bool,
    stratify: bool,
    workers: int,
) -> list[str]:
    """Return the ids of randomly chosen training images that have a mask.

    With ``nested`` a smaller choice of a seed is the beginning of a larger one. ``stratify`` reads all training masks.
    """
    names = sorted(name for name, sample in listing.train.items() if sample.mask is not None)
    if not names:
        raise UserError(
            f"dataset {dataset.name!r}: none of {len(listing.train)} training images has a mask; check the folder of masks"
        )
    number = labeled_count(len(names), ratio=ratio, count=count)
    rng = np.random.default_rng([seed] if nested else [seed, number])
    if stratify:
        from sslseg.data.scan import histograms

        pixels = histograms([listing.train[name] for name in names], dataset, workers=workers)
        return [names[index] for index in stratified_order(pixels, number, rng)]
    return [names[index] for index in rng.permutation(len(names))[:number]]
