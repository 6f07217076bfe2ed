"""``sslseg refine``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sslseg.cli.console import emit, note, source_argument
from sslseg.cli.options import WhichOption
from sslseg.cli.training import TrainFlags, train_options, with_train_flags


@with_train_flags
def command(
    source: Annotated[
        str | None,
        typer.Argument(help="Store, or a run that has one, or '-'; by default the newest run.", show_default=False),
    ] = None,
    stage: Annotated[
        int | None, typer.Option(help="2, 3, ... By default one more than the stage of the store.", show_default=False)
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILTER",
            help="Learn only from stored pixels such as 'confidence>0.9' or 'entropy<q80'; repeatable.",
            show_default=False,
        ),
    ] = None,
    branch: Annotated[
        str | None,
        typer.Option(help="Second branch: g-hat or g-tilde. By default g-hat in stage 2.", show_default=False),
    ] = None,
    no_consistency: Annotated[bool, typer.Option("--no-consistency", help="Leave L_con and the teacher out.")] = False,
    no_pseudo_task: Annotated[
        bool, typer.Option("--no-pseudo-task", help="Leave Task 2, the stored masks, out.")
    ] = False,
    no_strong_augmentation: Annotated[
        bool, typer.Option("--no-strong-augmentation", help="Let A and B be the identity.")
    ] = False,
    no_ema: Annotated[bool, typer.Option("--no-ema", help="The teacher is the student itself.")] = False,
    which: WhichOption = "best",
    *,
    flags: TrainFlags,
) -> None:
    """Train the next stage on a store's masks, and write a run directory with the next, better store in it.

    Three-stage self-training: network, batches and schedule are those of the run that made the store, unless flags say
    otherwise; weights start anew. Prints the run directory; its store is <run>/stores/<subset>.h5, which the next
    refine finds there.
    """
    from sslseg.cli.options import check_which, find_split
    from sslseg.cli.train import check_dataset, report
    from sslseg.refine import METHOD, find_input, refine, run_name
    from sslseg.workspace import Workspace

    workspace = Workspace.load()
    given = find_input(source_argument(source) or workspace.newest_run())
    switches: dict[str, Any] = {"method.branch": branch} if branch is not None else {}
    for wanted, key, value in (
        (no_consistency, "method.consistency_weight", 0.0),
        (no_pseudo_task, "method.pseudo_weight", 0.0),
        (no_strong_augmentation, "views.strong", []),
        (no_ema, "method.decays", []),
    ):
        if wanted:
            switches[key] = value
    options = train_options(flags, workspace, method=METHOD, **switches)
    run_split = given.model.run.split_folder if given.model.run is not None else None
    split = find_split(flags.split or run_split, flags.data)
    check_dataset(split, workspace)
    number = stage if stage is not None else given.next_stage
    run, store = refine(
        given,
        split,
        flags.run_dir or workspace.runs / run_name(given, number),
        options,
        stage=number,
        keep=keep or (),
        which=check_which(which),
        workers=options.workers if options.workers is not None else given.config.data.workers,
    )
    told = report(run, dry_run=flags.dry_run)
    if not flags.dry_run:
        note(f"store: {store}")
    emit(run.folder, dict(told, stage=number, store=str(store)), as_json=flags.as_json)
