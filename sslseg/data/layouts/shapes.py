"""The built-in synthetic dataset, which is created where it is missing."""

from __future__ import annotations

from pathlib import Path

from sslseg.data.description import DatasetDescription, Listing
from sslseg.data.layouts import folder
from sslseg.data.layouts.base import Facts

DEFAULT_ROOT = Path("data") / "shapes"


def detect(root: Path) -> bool:
    """Never: it is chosen by name, or by giving no dataset at all."""
    return False


def facts(root: Path) -> Facts:
    description = describe(root)
    return Facts(classes=description.classes, palette=description.palette)


def describe(root: Path = DEFAULT_ROOT) -> DatasetDescription:
    """Return the description of the synthetic dataset at ``root``, which need not exist yet."""
    from sslseg.data import synthetic

    return DatasetDescription("shapes", str(root.resolve()), "shapes", synthetic.CLASSES, synthetic.PALETTE)


def list_samples(description: DatasetDescription) -> Listing:
    from sslseg.data import synthetic

    synthetic.ensure(Path(description.root))
    return folder.list_samples(description)
