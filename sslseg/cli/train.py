"""``sslseg train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sslseg.cli.console import emit, note
from sslseg.cli.train_options import TrainFlags, train_options, with_train_flags

if TYPE_CHECKING:
    from sslseg.artifacts.run import Run
    from sslseg.artifacts.workspace import Workspace
    from sslseg.splits.split import Split


@with_train_flags
def command(
    method: Annotated[
        str | None,
        typer.Option(
            help="Name of a method; `sslseg methods` lists them. Default: auto, the one that is recommended for the split.",
            show_default=False,
        ),
    ] = None,
    *,
    flags: TrainFlags,
) -> None:
    """Train a model on a split and write a run directory.

    Keeps the last and the best checkpoint. Ctrl-C finishes the iteration, saves and stops; --resume goes on exactly where
    it stopped. Flags win over sslseg.toml, which wins over the config; --set wins over all. In a folder without
    sslseg.toml and splits it begins with a split of the built-in synthetic dataset, 1/8 of it labeled.
    """
    from sslseg.plugins import AUTO, check_method

    if method not in (None, AUTO) and flags.config is None:
        check_method(method)  # before anything heavy is loaded, or made
    from sslseg.artifacts.workspace import Workspace
    from sslseg.cli.options import find_split
    from sslseg.train import default_folder, train

    workspace = Workspace.load()
    options = train_options(flags, workspace, method=method)
    if flags.split is None and flags.data is None and flags.launcher == "none" and workspace.untouched:
        _first_split(workspace)
    given = find_split(flags.split, flags.data)
    check_dataset(given, workspace)
    folder = flags.run_dir or default_folder(workspace.runs, given, _split_name(flags.split, workspace), options)
    run = train(given, folder, options)
    emit(run.folder, report(run, dry_run=flags.dry_run), as_json=flags.as_json)


def report(run: Run, *, dry_run: bool) -> dict[str, object]:
    """Print the scores of a finished run on stderr and return what ``--json`` shows of it."""
    if dry_run:
        note("dry run: one iteration done, nothing written")
        return {}
    record = run.read()
    for which in ("last", "best"):
        if record.get(which, {}).get("mIoU") is not None:
            place = f"iteration {record[which]['iteration']}"
            note(f"{which}: mIoU {record[which]['mIoU']:.2f} ({record['protocol']}) at {place}")
    keys = ("method", "auto", "seed", "iterations", "last", "best", "protocol")
    return {key: record[key] for key in keys if key in record}


def _first_split(workspace: Workspace) -> None:
    """Make a split of the built-in synthetic dataset, as `sslseg split --ratio 1/8` does, for whoever tries the program out."""
    from sslseg.cli.split import folder_name
    from sslseg.split import SplitOptions, make_split

    split = make_split(workspace.description(), SplitOptions(ratio="1/8"))
    path = split.save(workspace.splits / folder_name(split))
    note(f"no split here: made {path}, in which 1/8 of the built-in synthetic dataset is labeled")


def _split_name(split: Path | None, workspace: Workspace) -> str:
    path = split if split is not None else workspace.newest_split()
    return (path.parent if path.suffix == ".json" else path).absolute().name


def check_dataset(split: Split, workspace: Workspace) -> None:
    """Refuse a split of another dataset than the one that sslseg.toml describes."""
    from sslseg.artifacts.workspace import TOML
    from sslseg.errors import IncompatibleError

    if "dataset" not in workspace.settings:
        return
    described = workspace.description()
    if described.classes != split.dataset.classes or described.layout != split.dataset.layout:
        raise IncompatibleError(
            f"the split is of dataset {split.dataset.name!r} ({split.dataset.num_classes} classes), {TOML} describes"
            f" {described.name!r} ({described.num_classes} classes); make a new split, or name the right one with --split"
        )
