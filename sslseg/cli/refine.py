"""``sslseg refine``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sslseg.cli.console import emit, note, source_argument
from sslseg.cli.options import WhichOption
from sslseg.cli.train_options import TrainFlags, train_options, with_train_flags


@with_train_flags
def command(
    source: Annotated[
        str | None,
        typer.Argument(help="Store, or a run that has one, or '-'; by default the newest run.", show_default=False),
    ] = None,
    stage: Annotated[
        int | None,
        typer.Option(
            help="Number of the stage, for a method that refines in stages: 2, 3, ... By default one more than the store's.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="How to learn from the store. By default what the method that made it asks for.", show_default=False
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILTER",
            help="Learn only from stored pixels such as 'confidence>0.9', 'entropy<q80' or 'flaw<0.6'; repeatable.",
            show_default=False,
        ),
    ] = None,
    keep_images: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="Learn only from this fraction of the unlabeled images, those on which the snapshots of the model agree most"
            " (pseudolabel --agreement), such as 0.5.",
            show_default=False,
        ),
    ] = None,
    keep_precise: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="With --held-out: give each class its own threshold of confidence, the lowest at which this fraction of the"
            " held-out pixels above it is right, such as 0.9; learn only from stored pixels that pass.",
            show_default=False,
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE",
            help="Store of labeled images that the model has not learned from (pseudolabel --subset val).",
            show_default=False,
        ),
    ] = None,
    weight: Annotated[
        str | None,
        typer.Option(
            help="Weight stored pixels by a score of the store, such as confidence; by 1 - score where high means wrong.",
            show_default=False,
        ),
    ] = None,
    which: WhichOption = "best",
    *,
    flags: TrainFlags,
) -> None:
    """Train on a store's masks, and write a run directory with the next, better store in it.

    How it learns is what the method that made the store asks for; --stage, --weight and marks of unreliable pixels
    (pseudolabel --reliability) choose a method that can use them. Network, batches and schedule are those of the run that
    made the store, unless flags say otherwise. Prints the run directory;
    its store is <run>/stores/<subset>.h5, where the next refine finds it.
    """
    from sslseg.artifacts.workspace import Workspace
    from sslseg.cli.options import check_which, find_split
    from sslseg.cli.train import check_dataset, report
    from sslseg.refine import find_input, plan, refine, run_name

    workspace = Workspace.load()
    given = find_input(source_argument(source) or workspace.newest_run())
    chosen = plan(given, method=method, config=flags.config, stage=stage, weight=weight)
    options = train_options(flags, workspace, method=chosen.method)
    run_split = given.model.run.split_folder if given.model.run is not None else None
    split = find_split(flags.split or run_split, flags.data)
    check_dataset(split, workspace)
    run, store = refine(
        given,
        split,
        flags.run_dir or workspace.runs / run_name(given, chosen),
        options,
        stage=stage,
        method=method,
        keep=keep or (),
        images=keep_images,
        precise=keep_precise,
        held_out=held_out,
        weight=weight,
        which=check_which(which),
        workers=options.workers if options.workers is not None else given.model.config.data.workers,
    )
    record = report(run, dry_run=flags.dry_run)
    if not flags.dry_run:
        note(f"store: {store}")
    emit(run.folder, dict(record, stage=chosen.stage, store=str(store)), as_json=flags.as_json)
