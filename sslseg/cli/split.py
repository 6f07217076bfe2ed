"""``sslseg split``."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sslseg.cli.console import JsonFlag, emit, note, show
from sslseg.cli.options import DataOption, WorkersOption

if TYPE_CHECKING:
    from sslseg.data.scan import Scan
    from sslseg.splits.split import Split

PathOption = Path | None


def command(
    ratio: Annotated[
        str | None,
        typer.Option(
            help="Fraction of training images that count as labeled: 1/8, 12.5% or 0.125. Default: 1/8.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Number of labeled images, instead of --ratio.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the choice.")] = 0,
    nested: Annotated[bool, typer.Option(help="Make the smaller splits of a seed prefixes of its larger ones.")] = True,
    stratify: Annotated[
        bool,
        typer.Option("--stratify", help="Cover every class and match the class frequencies; reads all training masks."),
    ] = False,
    labeled_list: Annotated[
        PathOption,
        typer.Option(help="Published list of labeled images, in any of the known formats.", show_default=False),
    ] = None,
    unlabeled_list: Annotated[
        PathOption,
        typer.Option(help="List of unlabeled images; by default all other training images.", show_default=False),
    ] = None,
    val_list: Annotated[PathOption, typer.Option(help="List of validation images.", show_default=False)] = None,
    data: DataOption = None,
    layout: Annotated[str, typer.Option(help="Layout of --data, as for sslseg init.")] = "auto",
    ignore_index: Annotated[
        int | None, typer.Option(help="Ignore index of --data, as for sslseg init.", show_default=False)
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Class names of --data, as for sslseg init.", show_default=False)
    ] = None,
    unlabeled_dir: Annotated[
        PathOption, typer.Option(help="Another folder of images, without masks.", show_default=False)
    ] = None,
    scan: Annotated[
        bool, typer.Option(help="Open every image and the labeled masks to find damaged files now.")
    ] = True,
    workers: WorkersOption = 2,
    out: Annotated[
        PathOption,
        typer.Option(help="Folder to write to; by default splits/<dataset>-<ratio>-seed<seed>.", show_default=False),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Choose which training images count as labeled, and write split.json and plain lists.

    Without sslseg.toml and --data, the built-in synthetic dataset is used. The masks of unlabeled images are never read,
    except by --stratify.
    """
    from dataclasses import replace

    from sslseg.artifacts.workspace import Workspace
    from sslseg.errors import UserError
    from sslseg.init import describe
    from sslseg.split import SplitOptions, make_split
    from sslseg.splits.family import SEEDED

    workspace, listing = Workspace.load(), None
    if data is not None:
        found = describe(
            data, layout_name=layout, ignore_index=ignore_index, classes=classes, unlabeled_dir=unlabeled_dir
        )
        dataset, listing = found.description, found.listing
    else:
        if layout != "auto" or ignore_index is not None or classes is not None:
            raise UserError(
                "--layout, --ignore-index and --classes describe --data: give it too, or change sslseg.toml"
            )
        dataset = workspace.description()
        if unlabeled_dir is not None:
            options = dataset.options | dict(unlabeled_dir=str(unlabeled_dir.absolute()))
            dataset = replace(dataset, options=options)
    split = make_split(
        dataset,
        SplitOptions(
            ratio=ratio,
            count=count,
            seed=seed,
            nested=nested,
            stratify=stratify,
            labeled_list=labeled_list,
            unlabeled_list=unlabeled_list,
            val_list=val_list,
            workers=workers,
        ),
        listing=listing,
    )
    if scan:
        from sslseg.data.scan import scan as check

        subsets = {subset: split.samples(subset) for subset in ("labeled", "unlabeled", "val")}
        _show(split, check(subsets, dataset, masks=("labeled", "val"), workers=workers))
    note(f"{len(split.labeled)} labeled, {len(split.unlabeled)} unlabeled, {len(split.val)} validation images")
    if split.family["name"] != SEEDED:
        fine = f", {100 * split.family['fine_share']:.1f} % finely annotated" if "fine_share" in split.family else ""
        note(f"family: {split.family['name']}{fine}; do not compare rows of different split families")
    path = split.save(out or workspace.splits / folder_name(split))
    counts = {subset: split.sizes[subset] for subset in ("labeled", "unlabeled", "val")}
    emit(
        path,
        dict(counts, sha256=split.sha256, seed=split.seed, ratio=split.ratio, family=split.family),
        as_json=as_json,
    )


def folder_name(split: Split) -> str:
    """Return the name of a split's folder: dataset, ratio or number, strategy and seed."""
    if split.strategy == "list":
        amount = Path(split.family.get("list", "list")).stem
    else:
        amount = (split.ratio or str(len(split.labeled))).replace("/", "_").replace("%", "pct")
    parts = [
        split.dataset.name,
        amount,
        *(word.strip() for word in split.strategy.split(",") if word != "random"),
    ]
    name = "-".join(part.replace(" ", "-") for part in parts if part != "list")
    return name if split.seed is None else f"{name}-seed{split.seed}"


def _show(split: Split, scans: list[Scan]) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("class")
    shown = [scan for scan in scans if scan.name != "unlabeled" and scan.images]
    for scan in shown:
        table.add_column(f"{scan.name} images", justify="right")
        table.add_column("pixels", justify="right")
    for index, name in enumerate(split.dataset.classes):
        cells = [(str(scan.occurrences[index]), f"{100 * scan.frequencies[index]:.2f} %") for scan in shown]
        table.add_row(name, *itertools.chain.from_iterable(cells))
    show(table, f"{split.dataset.name}: images with each class, and fraction of labeled pixels")
    absent = [name for index, name in enumerate(split.dataset.classes) if scans[0].occurrences[index] == 0]
    if absent:
        note(f"no labeled image holds: {', '.join(absent)}; try --stratify or another --seed")
