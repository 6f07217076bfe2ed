"""Splits: which images are labelled, which are not, which validate; drawn by a seed or read from published lists."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from sslseg import __version__
from sslseg.data.description import DatasetDescription, Listing, Sample, canonical_sha256
from sslseg.data.layouts import list_samples, voc
from sslseg.data.lists import read_list
from sslseg.errors import UserError
from sslseg.files import write_json, write_text
from sslseg.stratify import stratified_order

FORMAT, VERSION = "sslseg-split", 1
FILE = "split.json"
SUBSETS = ("labeled", "unlabeled", "train", "val", "all")
DEFAULT_RATIO = "1/8"
CPS_SIXTEENTH = (93, 662)  # finely annotated images among the labelled ones


@dataclass(frozen=True)
class Split:
    """Ids of a dataset by role, and how they were chosen."""

    dataset: DatasetDescription
    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    val: tuple[str, ...]
    seed: int | None
    ratio: str | None
    strategy: str
    family: dict[str, Any] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """Return what the hash covers: everything but places on this machine."""
        return dict(
            format=FORMAT,
            version=VERSION,
            dataset=self.dataset.content(),
            labeled=list(self.labeled),
            unlabeled=list(self.unlabeled),
            val=list(self.val),
            seed=self.seed,
            ratio=self.ratio,
            strategy=self.strategy,
            family=self.family,
        )

    @property
    def sha256(self) -> str:
        return canonical_sha256(self.content())

    def save(self, folder: Path) -> Path:
        """Write ``split.json`` and plain lists into ``folder``; the same split again changes nothing.

        Raises:
            UserError: another split lies there.
        """
        path = folder / FILE
        if path.exists() and Split.load(path).sha256 != self.sha256:
            raise UserError(f"{path} holds another split; give another folder with --out, or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("labeled", "unlabeled", "val"):
            write_text(folder / f"{name}.txt", "".join(f"{entry}\n" for entry in getattr(self, name)))
        record = self.content() | dict(
            dataset=self.dataset.to_dict(),
            dataset_sha256=self.dataset.fingerprint(),
            program_version=__version__,
            sha256=self.sha256,
        )
        write_json(path, record)
        return path

    @classmethod
    def load(cls, path: Path, *, root: Path | None = None) -> Split:
        """Read a split from its file or folder; ``root`` is the dataset's place when it has moved.

        Raises:
            UserError: missing, not a split, of a newer version, or changed by hand.
        """
        path = path / FILE if path.is_dir() else path
        try:
            record = json.loads(path.read_text())
        except OSError as error:
            raise UserError(f"split {path} cannot be read ({error.strerror}); make one with `sslseg split`") from error
        except ValueError as error:
            raise UserError(f"split {path} is no JSON ({error}); make it anew with `sslseg split`") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise UserError(f"{path} is no split of sslseg; give a split.json")
        if not isinstance(record.get("version"), int):
            raise UserError(f"split {path} has no version number; make it anew with `sslseg split`")
        if record["version"] > VERSION:
            raise UserError(
                f"split {path} has version {record['version']}, this program reads up to {VERSION}; update sslseg"
            )
        try:
            split = cls(
                dataset=DatasetDescription.from_dict(record["dataset"]),
                labeled=tuple(record["labeled"]),
                unlabeled=tuple(record["unlabeled"]),
                val=tuple(record["val"]),
                seed=record["seed"],
                ratio=record["ratio"],
                strategy=record["strategy"],
                family=record["family"],
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"split {path} lacks or has a wrong {error}; make it anew with `sslseg split`") from error
        if split.sha256 != record.get("sha256"):
            raise UserError(
                f"split {path} was changed after it was written (its sha256 differs); make a new one with --labeled-list"
            )
        if root is not None:
            split = replace(split, dataset=split.dataset.with_root(root))
        return split

    def samples(self, subset: str) -> list[Sample]:
        """Return the samples of ``labeled``, ``unlabeled``, ``train`` (both), ``val`` or ``all``, in the split's order.

        Raises:
            UserError: the dataset lacks an id.
        """
        if subset not in SUBSETS:
            raise UserError(f"subset {subset!r} is unknown; use --subset with one of: {', '.join(SUBSETS)}")
        listing = list_samples(self.dataset)
        known = listing.train | listing.val
        roles = {"train": ("labeled", "unlabeled"), "all": ("labeled", "unlabeled", "val")}.get(subset, (subset,))
        names = [name for role in roles for name in getattr(self, role)]
        missing = [name for name in names if name not in known]
        if missing:
            raise UserError(
                f"the split names {missing[0]!r} ({len(missing)} of {len(names)} ids), which is not in {self.dataset.root};"
                " it belongs to another dataset, or the dataset moved: give --data, or make a new split"
            )
        return [known[name] for name in names]


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


def make_split(dataset: DatasetDescription, options: SplitOptions) -> Split:
    """Split ``dataset``; nothing is written.

    Raises:
        UserError: the ratio, count or lists do not fit the dataset or each other.
    """
    listing = _with_val_list(list_samples(dataset), options)
    if options.unlabeled_list is not None and options.labeled_list is None:
        raise UserError("--unlabeled-list needs --labeled-list beside it")
    if options.labeled_list is not None:
        labeled = _from_list(listing, options.labeled_list, options)
        strategy = "list"
    else:
        labeled = _drawn(listing, dataset, options)
        strategy = "stratified" if options.stratify else "random"
        strategy += "" if options.nested else ", not nested"
    unlabeled = _unlabeled(listing, labeled, options)
    without = [name for name, sample in listing.val.items() if sample.mask is None]
    if without:
        raise UserError(
            f"validation image {without[0]!r} has no mask ({len(without)} of {len(listing.val)}); add it, or name others with --val-list"
        )
    ratio = None
    if options.count is None and (options.labeled_list is None or options.ratio is not None):
        # One spelling, so that 12.5% and 1/8 are the same split.
        ratio = str(parse_ratio(options.ratio or DEFAULT_RATIO))
    return Split(
        dataset=dataset,
        labeled=tuple(labeled),
        unlabeled=tuple(unlabeled),
        val=tuple(listing.val),
        seed=None if strategy == "list" else options.seed,
        ratio=ratio,
        strategy=strategy,
        family=family(dataset, labeled, from_list=options.labeled_list),
    )


def parse_ratio(text: str) -> Fraction:
    """Read ``1/8``, ``12.5%`` or ``0.125``; raise UserError unless it lies in (0, 1]."""
    try:
        ratio = Fraction(text.strip().rstrip("%")) / (100 if text.strip().endswith("%") else 1)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"--ratio {text!r} is no ratio; write 1/8, 12.5% or 0.125") from error
    if not 0 < ratio <= 1:
        raise UserError(f"--ratio {text} is not above 0 and at most 1; for a number of images use --count")
    return ratio


def labeled_count(total: int, options: SplitOptions) -> int:
    """Return how many of ``total`` images are labelled: the ratio rounded half up, at least 1."""
    if options.count is not None and options.ratio is not None:
        raise UserError("--ratio and --count exclude each other; give one")
    if options.count is not None:
        if not 1 <= options.count <= total:
            raise UserError(
                f"--count {options.count} is not between 1 and the {total} training images that have a mask"
            )
        return options.count
    ratio = parse_ratio(options.ratio or DEFAULT_RATIO)
    return max(int(ratio * total + Fraction(1, 2)), 1)


def _drawn(listing: Listing, dataset: DatasetDescription, options: SplitOptions) -> list[str]:
    names = sorted(name for name, sample in listing.train.items() if sample.mask is not None)
    if not names:
        raise UserError(
            f"dataset {dataset.name!r}: none of {len(listing.train)} training images has a mask; check the folder of masks"
        )
    count = labeled_count(len(names), options)
    rng = np.random.default_rng([options.seed] if options.nested else [options.seed, count])
    if options.stratify:
        from sslseg.data.scan import histograms

        pixels = histograms([listing.train[name] for name in names], dataset, workers=options.workers)
        return [names[index] for index in stratified_order(pixels, count, rng)]
    return [names[index] for index in rng.permutation(len(names))[:count]]


def _with_val_list(listing: Listing, options: SplitOptions) -> Listing:
    if options.val_list is None:
        if not listing.val:
            raise UserError(
                "the dataset has no validation images; name some with --val-list (an empty file: none on purpose)"
            )
        return listing
    known = listing.train | listing.val
    names = read_list(options.val_list, list(known), may_be_empty=True).ids
    val = {name: known[name] for name in names}
    return replace(listing, train={name: sample for name, sample in known.items() if name not in val}, val=val)


def _from_list(listing: Listing, path: Path, options: SplitOptions) -> list[str]:
    entries = read_list(path, list(listing.train | listing.val), train=listing.listed or list(listing.train))
    if entries.permutation:
        chosen = entries.ids[: labeled_count(len(entries.ids), options)]
        return _with_masks(chosen, listing, path)
    if options.ratio is not None or options.count is not None:
        raise UserError(f"--labeled-list {path} names the images itself; leave --ratio and --count out")
    _not_val(entries.ids, listing, path)
    return _with_masks(entries.ids, listing, path)


def _with_masks(names: list[str], listing: Listing, path: Path) -> list[str]:
    without = [name for name in names if listing.train[name].mask is None]
    if without:
        raise UserError(f"list {path} names {without[0]!r} as labelled, which has no mask; add it or mend the list")
    return names


def _not_val(names: Sequence[str], listing: Listing, path: Path) -> None:
    wrong = [name for name in names if name in listing.val]
    if wrong:
        raise UserError(
            f"list {path} names {wrong[0]!r}, which is a validation image ({len(wrong)} such); training on it would be cheating"
        )


def _unlabeled(listing: Listing, labeled: Sequence[str], options: SplitOptions) -> list[str]:
    taken = set(labeled)
    if options.unlabeled_list is None:
        return [name for name in sorted(listing.train) if name not in taken]
    names = read_list(options.unlabeled_list, list(listing.train | listing.val)).ids
    _not_val(names, listing, options.unlabeled_list)
    both = [name for name in names if name in taken]
    if both:
        raise UserError(
            f"list {options.unlabeled_list} names {both[0]!r}, which is labelled too ({len(both)} such); mend one of the lists"
        )
    return names


def family(dataset: DatasetDescription, labeled: Sequence[str], *, from_list: Path | None) -> dict[str, Any]:
    """Say which published family the labelled list belongs to, as far as the list itself tells.

    On VOC the share of finely annotated images tells them apart: rows of different families must not be compared.
    """
    if from_list is None:
        return dict(name="own draw")
    fine = voc.fine_ids(dataset) if dataset.layout == "voc" else None
    if not fine:
        return dict(name="unknown", list=from_list.name)
    count = len(fine.intersection(labeled))
    if count == len(labeled):
        name = "all finely annotated (classic, or U2PL's blender lists)"
    elif (count, len(labeled)) == CPS_SIXTEENTH:
        name = "mixed annotations (CPS and UniMatch, blender 1/16)"
    else:
        name = "mixed annotations (unknown family)"
    return dict(name=name, list=from_list.name, fine=count, fine_share=round(count / len(labeled), 4))
