"""``sslseg train``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sslseg.cli.console import emit, note
from sslseg.cli.training import TrainFlags, train_options, with_train_flags

if TYPE_CHECKING:
    from sslseg.run import Run
    from sslseg.split import Split
    from sslseg.workspace import Workspace

# Options that set one key of the config, and the methods that have it.
SWITCHES = {
    "augment": ("method.mix", ("cutmix", "u2pl")),
    "contrast": ("method.contrast.loss", ("u2pl",)),
    "lambda_max": ("method.lambda_max", ("guidedmix",)),
}


@with_train_flags
def command(
    method: Annotated[
        str | None,
        typer.Option(
            help="Method: supervised, mean-teacher, cutmix, ael, u2pl, gct, guidedmix, adv-ssl, s4l. Default: supervised.",
            show_default=False,
        ),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="How cutmix or u2pl mixes unlabelled images: cutmix, cutout or classmix; u2pl also ael or none."
            " Default: cutmix.",
            show_default=False,
        ),
    ] = None,
    contrast: Annotated[
        str | None, typer.Option(help="Contrastive loss of u2pl: infonce or bce. Default: infonce.", show_default=False)
    ] = None,
    flaw_detector: Annotated[
        bool, typer.Option("--flaw-detector", help="With mean-teacher: no consistency where the teacher looks worse.")
    ] = False,
    lambda_max: Annotated[
        float | None,
        typer.Option(
            help="With guidedmix: bound of lambda, the labelled image's part in a mixture, 0 to 0.5.",
            show_default=False,
        ),
    ] = None,
    *,
    flags: TrainFlags,
) -> None:
    """Train a model on a split and write a run directory.

    Keeps the last and the best checkpoint. Ctrl-C finishes the step, saves and stops; --resume goes on exactly where
    it stopped. Flags win over sslseg.toml, which wins over the config; --set wins over all. In a folder without
    sslseg.toml and splits it begins with a split of the embedded dataset, 1/8 labelled.
    """
    from sslseg.cli.options import find_split
    from sslseg.errors import UserError
    from sslseg.train import train
    from sslseg.workspace import Workspace

    workspace = Workspace.load()
    if flaw_detector:
        if method != "mean-teacher" or flags.config is not None:
            raise UserError(
                "--flaw-detector needs --method mean-teacher and no --config; a config of your own names method.detector"
            )
        flags = replace(flags, config="mean-teacher/flaw_detector")
        method = None
    asked = dict(augment=augment, contrast=contrast, lambda_max=lambda_max)
    switches = {name: value for name, value in asked.items() if value is not None}
    options = train_options(
        flags, workspace, method=method, **{SWITCHES[name][0]: value for name, value in switches.items()}
    )
    for name in switches:
        methods = SWITCHES[name][1]
        if options.method not in methods and options.config is None:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} needs --method {' or '.join(methods)}, this is {options.method}; leave it out")
    if flags.split is None and flags.data is None and flags.launcher == "none" and workspace.untouched:
        _first_split(workspace)
    given = find_split(flags.split, flags.data)
    check_dataset(given, workspace)
    folder = flags.run_dir or workspace.runs / f"{options.method}-{_split_name(flags.split, workspace)}"
    run = train(given, folder, options)
    emit(run.folder, report(run, dry_run=flags.dry_run), as_json=flags.as_json)


def report(run: Run, *, dry_run: bool) -> dict[str, object]:
    """Tell the scores of a finished run on stderr and return what ``--json`` says of it."""
    if dry_run:
        note("dry run: one step done, nothing written")
        return {}
    record = run.read()
    for which in ("last", "best"):
        if record.get(which, {}).get("mIoU") is not None:
            note(f"{which}: mIoU {record[which]['mIoU']:.2f} ({record['protocol']}) at step {record[which]['iter']}")
    keys = ("method", "seed", "iters", "last", "best", "protocol")
    return {key: record[key] for key in keys if key in record}


def _first_split(workspace: Workspace) -> None:
    """Make a split of the embedded dataset, as `sslseg split --ratio 1/8` does, for whoever tries the program out."""
    from sslseg.cli.split import folder_name
    from sslseg.split import SplitOptions, make_split

    split = make_split(workspace.description(), SplitOptions(ratio="1/8"))
    path = split.save(workspace.splits / folder_name(split))
    note(f"no split here: made {path}, in which one image in eight of the embedded dataset counts as labelled")


def _split_name(split: Path | None, workspace: Workspace) -> str:
    path = split if split is not None else workspace.newest_split()
    return (path.parent if path.suffix == ".json" else path).absolute().name


def check_dataset(split: Split, workspace: Workspace) -> None:
    """Refuse a split of another dataset than the one that sslseg.toml describes."""
    from sslseg.errors import IncompatibleError
    from sslseg.workspace import TOML

    if "dataset" not in workspace.settings:
        return
    described = workspace.description()
    if described.classes != split.dataset.classes or described.layout != split.dataset.layout:
        raise IncompatibleError(
            f"the split is of dataset {split.dataset.name!r} ({split.dataset.num_classes} classes), {TOML} describes"
            f" {described.name!r} ({described.num_classes} classes); make a new split, or name the right one with --split"
        )
