"""The description of a dataset: its folder, its layout, and the meaning of the values in its masks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sslseg.data.labels import Color, ignore_value
from sslseg.errors import UserError

# Options that hold paths: left out of every hash, as the root is.
PATH_OPTIONS = frozenset({"unlabeled_dir", "train_list", "val_list", "train_pairs", "val_pairs"})


@dataclass(frozen=True)
class Sample:
    """One image of a dataset.

    Attributes:
        id: unique within the dataset; may hold slashes.
        image: path of the image file.
        mask: path of the mask file, or None for an image without labels.
    """

    id: str
    image: str
    mask: str | None = None


@dataclass(frozen=True)
class Listing:
    """The images of a dataset by id, in sorted order.

    Attributes:
        train: training images, with and without masks.
        val: validation images; none of their ids is in ``train``.
        listed: training ids in the order of the dataset's own list file, where it has one.
    """

    train: dict[str, Sample]
    val: dict[str, Sample]
    listed: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetDescription:
    """A dataset, as ``sslseg.toml`` and ``split.json`` hold it.

    Attributes:
        layout: a name of ``sslseg.data.layouts.LAYOUTS``.
        root: absolute path of the dataset's folder.
        palette: one RGB color (0..255) for each class.
        ignore_index: raw value of ignored pixels in the mask files (0xRRGGBB where masks are color-coded), or None.
        options: settings of the layout; paths among them are relative to ``root`` or absolute.
    """

    layout: str
    root: str
    name: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ignore_value(len(self.classes))
        repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if repeated:
            raise UserError(
                f"dataset {self.name!r}: class {repeated[0]!r} is named twice; give each class its own name"
            )
        if len(self.palette) != len(self.classes):
            raise UserError(
                f"dataset {self.name!r}: {len(self.palette)} palette colors for {len(self.classes)} classes; give one each"
            )
        highest = 0xFFFFFF if self.options.get("mask_format") == "color" else 0xFFFF
        if self.ignore_index is not None and not 0 <= self.ignore_index <= highest:
            raise UserError(f"dataset {self.name!r}: ignore_index {self.ignore_index} is not in 0..{highest}")

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def path(self, option: str) -> Path | None:
        """Return the path that an option holds as an absolute path, None where it is not set."""
        value = self.options.get(option)
        return None if value is None else Path(self.root) / value

    def with_root(self, root: Path | str) -> DatasetDescription:
        """Return the same dataset in another folder."""
        return replace(self, root=str(Path(root).resolve()))

    def to_dict(self) -> dict[str, Any]:
        """Return the description as JSON-able values."""
        return dict(
            layout=self.layout,
            root=self.root,
            name=self.name,
            classes=list(self.classes),
            palette=[list(color) for color in self.palette],
            ignore_index=self.ignore_index,
            options=dict(self.options),
        )

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> DatasetDescription:
        """Build a description from the values of ``to_dict``; raise UserError naming a missing key or what is invalid."""
        try:
            return cls(
                layout=str(record["layout"]),
                root=str(record["root"]),
                name=str(record["name"]),
                classes=tuple(map(str, record["classes"])),
                palette=tuple((int(r), int(g), int(b)) for r, g, b in record["palette"]),
                ignore_index=None if record["ignore_index"] is None else int(record["ignore_index"]),
                options=dict(record["options"]),
            )
        except KeyError as error:
            raise UserError(
                f"dataset description has no key {error.args[0]!r}; recreate it with `sslseg init`"
            ) from error
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"dataset description is damaged ({error}); recreate it with `sslseg init`") from error

    def content(self) -> dict[str, Any]:
        """Return what identifies the dataset on any machine: everything but the root and the paths among the options."""
        record = self.to_dict()
        del record["root"]
        record["options"] = {key: value for key, value in self.options.items() if key not in PATH_OPTIONS}
        return record

    def fingerprint(self) -> str:
        """Return the SHA-256 of ``content()``."""
        return canonical_sha256(self.content())


def canonical_sha256(record: dict[str, Any]) -> str:
    """Return the SHA-256 of a record's JSON with sorted keys and no spaces."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
