"""``sslseg init``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sslseg.cli.console import JsonFlag, emit, note, show, stderr

if TYPE_CHECKING:
    from sslseg.init import Findings


def command(
    data: Annotated[Path, typer.Option("--data", help="Folder of the dataset, or a text file of image-mask pairs.")],
    layout: Annotated[
        str, typer.Option(help="auto, folder, voc, cityscapes, pascal-context, pairs or shapes.")
    ] = "auto",
    ignore_index: Annotated[
        int | None,
        typer.Option(help="Value in the masks that means 'no label', such as 255.", show_default=False),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Class names by index: 'sky,road,car', or a file with one name a line.", show_default=False),
    ] = None,
    unlabeled_dir: Annotated[
        Path | None, typer.Option(help="Another folder of images, without masks.", show_default=False)
    ] = None,
    val_pairs: Annotated[
        Path | None, typer.Option(help="Text file of validation pairs, for --layout pairs.", show_default=False)
    ] = None,
    mask_suffix: Annotated[
        str | None,
        typer.Option(help="Suffix of the mask names, such as '_mask', if it cannot be detected.", show_default=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Short name of the dataset; by default that of its folder.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing sslseg.toml.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Describe a dataset in sslseg.toml, which the other commands use in this folder.

    The layout is detected, and the number of classes is found in up to 200 masks. Class names come from classes.txt,
    labels.txt, class_names.txt, codes.txt or class_dict.csv in the dataset's folder, if there is one.
    """
    from dataclasses import replace
    from functools import partial

    from sslseg.artifacts.workspace import TOML
    from sslseg.errors import UserError
    from sslseg.init import describe, write_toml

    if Path(TOML).exists() and not force:
        raise UserError(f"{TOML} exists; add --force to overwrite it, or edit it")
    look = partial(
        describe,
        data,
        layout_name=layout,
        classes=classes,
        unlabeled_dir=unlabeled_dir,
        val_pairs=val_pairs,
        mask_suffix=mask_suffix,
        name=name,
    )
    found = look(ignore_index=ignore_index)
    if found.guessed and sys.stdin.isatty() and stderr.is_terminal:
        guess = found.description.ignore_index
        answer = typer.prompt(
            "Value in the masks that means 'no label' (none: -1)",
            default=-1 if guess is None else guess,
            type=int,
            err=True,
        )
        if answer != (-1 if guess is None else guess):
            found = replace(look(ignore_index=answer), guessed=False)
    _show(found)
    path = write_toml(found, Path(TOML), force=force)
    emit(path, found.description.to_dict(), as_json=as_json)


def _show(found: Findings) -> None:
    from rich.table import Table

    description, listing = found.description, found.listing
    table = Table()
    table.add_column("class")
    table.add_column("fraction of pixels", justify="right")
    pixels = found.pixels.copy()
    if description.ignore_index is not None:
        pixels[description.ignore_index] = 0
    if found.masks and "values" not in description.options:
        for index, name in enumerate(description.classes):
            table.add_row(name, f"{100 * pixels[index] / max(pixels.sum(), 1):.2f} %")
        show(table, f"{description.name}: layout {description.layout}, {description.num_classes} classes")
    for subset, samples in (("train", listing.train), ("val", listing.val)):
        masks = sum(sample.mask is not None for sample in samples.values())
        note(f"{subset}: {len(samples)} images, {masks} with a mask")
    if found.guessed:
        value = "none" if description.ignore_index is None else description.ignore_index
        note(f"ignore index: {value} (guessed from {found.masks} masks; set it with --ignore-index if it is wrong)")
    if not listing.val:
        note("no validation images found: give them to `sslseg split` with --val-list")
