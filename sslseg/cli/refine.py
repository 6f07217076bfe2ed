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
        int | None,
        typer.Option(
            help="2, 3, ... of three-stage self-training. By default one more than the stage of the store; a store with"
            " flaw maps or reliable masks, or --weight, trains a student without stages instead.",
            show_default=False,
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
    weight: Annotated[
        str | None,
        typer.Option(
            help="Weight stored pixels of a student by a score: flaw or entropy (1 - score), or confidence.",
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
    """Train on a store's masks, and write a run directory with the next, better store in it.

    The next stage of three-stage self-training; or, from a store with flaw maps (method gct), with marks of unreliable
    pixels (pseudolabel --reliability) or with --weight, a fresh student of the stored masks. Network, batches and
    schedule are those of the run that made the store, unless flags say otherwise; weights start anew. Prints the run
    directory; its store is <run>/stores/<subset>.h5, which the next refine finds there.
    """
    from sslseg.cli.options import check_which, find_split
    from sslseg.cli.train import check_dataset, report
    from sslseg.errors import UserError
    from sslseg.refine import find_input, method_of, refine, run_name
    from sslseg.store.format import FLAW, RELIABLE
    from sslseg.workspace import Workspace

    workspace = Workspace.load()
    given = find_input(source_argument(source) or workspace.newest_run())
    if stage is None and weight is None and not (given.store.has(FLAW) or given.store.has(RELIABLE)):
        stage = given.next_stage
    switches: dict[str, Any] = {}
    for option, wanted, key, value in (
        ("--branch", branch is not None, "method.branch", branch),
        ("--no-consistency", no_consistency, "method.consistency_weight", 0.0),
        ("--no-pseudo-task", no_pseudo_task, "method.pseudo_weight", 0.0),
        ("--no-strong-augmentation", no_strong_augmentation, "views.strong", []),
        ("--no-ema", no_ema, "method.decays", []),
    ):
        if wanted and stage is None:
            raise UserError(
                f"{option} belongs to a stage, not to a student of stored masks; add --stage, or leave it out"
            )
        if wanted:
            switches[key] = value
    if stage is not None and weight is not None:
        raise UserError("--weight belongs to a student of stored masks, not to a stage; leave --stage or --weight out")
    options = train_options(flags, workspace, method=method_of(stage), **switches)
    run_split = given.model.run.split_folder if given.model.run is not None else None
    split = find_split(flags.split or run_split, flags.data)
    check_dataset(split, workspace)
    run, store = refine(
        given,
        split,
        flags.run_dir or workspace.runs / run_name(given, stage),
        options,
        stage=stage,
        keep=keep or (),
        weight=weight,
        which=check_which(which),
        workers=options.workers if options.workers is not None else given.config.data.workers,
    )
    told = report(run, dry_run=flags.dry_run)
    if not flags.dry_run:
        note(f"store: {store}")
    emit(run.folder, dict(told, stage=stage, store=str(store)), as_json=flags.as_json)
