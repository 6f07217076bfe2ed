"""Splitting a dataset: which images are labeled, chosen by a seed or read from published lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sslseg.data.description import DatasetDescription, Listing
from sslseg.data.layouts import list_samples
from sslseg.errors import UserError
from sslseg.splits.draw import DEFAULT_RATIO, draw_labeled, parse_ratio
from sslseg.splits.family import family
from sslseg.splits.lists import labeled_from_list, unlabeled_from_list, with_val_list
from sslseg.splits.split import Split


@dataclass(frozen=True)
class SplitOptions:
    """How to split; ``ratio`` and ``count`` exclude each other."""

    ratio: str | None = None
    count: int | None = None
    seed: int = 0
    nested: bool = True
    stratify: bool = False
    labeled_list: Path | None = None
    unlabeled_list: Path | None = None
    val_list: Path | None = None
    workers: int = 2


def make_split(dataset: DatasetDescription, options: SplitOptions, *, listing: Listing | None = None) -> Split:
    """Split ``dataset``; nothing is written.

    Args:
        listing: of the dataset, if it has been listed already.

    Raises:
        UserError: the ratio, count or lists do not fit the dataset or each other.
    """
    listing = listing or list_samples(dataset)
    if options.val_list is not None:
        listing = with_val_list(listing, options.val_list)
    elif not listing.val:
        raise UserError(
            "the dataset has no validation images; name some with --val-list (an empty file: none on purpose)"
        )
    if options.unlabeled_list is not None and options.labeled_list is None:
        raise UserError("--unlabeled-list needs --labeled-list beside it")
    seed: int | None
    if options.labeled_list is not None:
        labeled = labeled_from_list(options.labeled_list, listing, ratio=options.ratio, count=options.count)
        seed, strategy = None, "list"
    else:
        labeled = draw_labeled(
            listing,
            dataset,
            ratio=options.ratio,
            count=options.count,
            seed=options.seed,
            nested=options.nested,
            stratify=options.stratify,
            workers=options.workers,
        )
        seed, strategy = options.seed, "stratified" if options.stratify else "random"
        strategy += "" if options.nested else ", not nested"
    if options.unlabeled_list is not None:
        unlabeled = unlabeled_from_list(options.unlabeled_list, listing, labeled)
    else:
        unlabeled = sorted(listing.train.keys() - set(labeled))
    without = [name for name, sample in listing.val.items() if sample.mask is None]
    if without:
        raise UserError(
            f"validation image {without[0]!r} has no mask ({len(without)} of {len(listing.val)}); add it, or name others with --val-list"
        )
    ratio = None
    if options.count is None and (options.labeled_list is None or options.ratio is not None):
        # One spelling, so that 12.5% and 1/8 are the same split.
        ratio = str(parse_ratio(options.ratio or DEFAULT_RATIO))
    split = Split(
        dataset=dataset,
        labeled=tuple(labeled),
        unlabeled=tuple(unlabeled),
        val=tuple(listing.val),
        seed=seed,
        ratio=ratio,
        strategy=strategy,
        family=family(dataset, labeled, from_list=options.labeled_list),
    )
    split.keep_listing(listing)
    return split
