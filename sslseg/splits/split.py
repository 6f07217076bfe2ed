"""``split.json``: which images of a dataset are labeled, which are unlabeled, and which validate."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sslseg import __version__
from sslseg.data.description import DatasetDescription, Listing, Sample, canonical_sha256
from sslseg.data.layouts import list_samples
from sslseg.errors import UserError
from sslseg.files import write_json, write_text

FORMAT, VERSION = "sslseg-split", 1
FILE = "split.json"
# Each subset and the fields of a split that it joins.
SUBSETS = dict(
    labeled=("labeled",),
    unlabeled=("unlabeled",),
    train=("labeled", "unlabeled"),
    val=("val",),
    all=("labeled", "unlabeled", "val"),
)


@dataclass(frozen=True)
class Split:
    """The ids of a dataset by subset, and how they were chosen.

    The dataset's folders are listed once, when samples are asked for first.
    """

    dataset: DatasetDescription
    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    val: tuple[str, ...]
    seed: int | None
    ratio: str | None
    strategy: str
    family: dict[str, Any] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """Return what the hash covers: everything but paths of this machine."""
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
        """Read a split from its file or folder; ``root`` is the dataset's folder if it has moved.

        Raises:
            UserError: missing, not a split, of a newer version, or changed by hand.
        """
        path = path / FILE if path.is_dir() else path
        try:
            record = json.loads(path.read_text())
        except OSError as error:
            raise UserError(f"split {path} cannot be read ({error.strerror}); make one with `sslseg split`") from error
        except ValueError as error:
            raise UserError(f"split {path} is not valid JSON ({error}); recreate it with `sslseg split`") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise UserError(f"{path} is not a split of sslseg; give a split.json")
        if not isinstance(record.get("version"), int):
            raise UserError(f"split {path} has no version number; recreate it with `sslseg split`")
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
            raise UserError(f"split {path} lacks or has a wrong {error}; recreate it with `sslseg split`") from error
        if split.sha256 != record.get("sha256"):
            raise UserError(
                f"split {path} was changed after it was written (its sha256 differs); make a new one with --labeled-list"
            )
        if root is not None:
            split = replace(split, dataset=split.dataset.with_root(root))
        return split

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of each subset, from the ids alone."""
        return {subset: sum(len(getattr(self, part)) for part in parts) for subset, parts in SUBSETS.items()}

    @functools.cached_property
    def samples_by_id(self) -> dict[str, Sample]:
        """Every sample of the dataset by id."""
        listing = list_samples(self.dataset)
        return listing.train | listing.val

    def keep_listing(self, listing: Listing) -> None:
        """Use a listing of the dataset that is there already."""
        vars(self)["samples_by_id"] = listing.train | listing.val  # where `cached_property` looks first

    def samples(self, subset: str) -> list[Sample]:
        """Return the samples of ``labeled``, ``unlabeled``, ``train`` (both), ``val`` or ``all``, in the split's order.

        Raises:
            UserError: the dataset lacks an id.
        """
        if subset not in SUBSETS:
            raise UserError(f"subset {subset!r} is unknown; use --subset with one of: {', '.join(SUBSETS)}")
        names = [name for part in SUBSETS[subset] for name in getattr(self, part)]
        missing = [name for name in names if name not in self.samples_by_id]
        if missing:
            raise UserError(
                f"the split names {missing[0]!r} ({len(missing)} of {len(names)} ids), which is not in {self.dataset.root};"
                " it belongs to another dataset, or the dataset moved: give --data, or make a new split"
            )
        return [self.samples_by_id[name] for name in names]
