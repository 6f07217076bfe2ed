"""``sslseg train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sslseg.cli.console import JsonFlag, emit, note
from sslseg.cli.options import CropOption, DataOption, DeviceOption, LauncherOption, SplitOption, parse_size

if TYPE_CHECKING:
    from sslseg.split import Split
    from sslseg.workspace import Workspace

IntOption = int | None


def command(
    method: Annotated[
        str | None, typer.Option(help="Method: supervised. Default: supervised.", show_default=False)
    ] = None,
    split: SplitOption = None,
    data: DataOption = None,
    model: Annotated[
        str | None,
        typer.Option(help="Preset, or path of your own mmseg config. Default: deeplabv3plus_r18s.", show_default=False),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="Shipped config (such as supervised/default) or path of your own.", show_default=False),
    ] = None,
    iters: Annotated[IntOption, typer.Option(help="Optimisation steps.", show_default=False)] = None,
    epochs: Annotated[
        IntOption, typer.Option(help="Passes over the larger stream instead of --iters.", show_default=False)
    ] = None,
    batch_size: Annotated[
        IntOption, typer.Option(help="Labelled images a step, over all ranks together.", show_default=False)
    ] = None,
    unlabeled_batch_size: Annotated[
        IntOption, typer.Option(help="Unlabelled images a step; by default as many.", show_default=False)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default=False)] = None,
    crop: CropOption = None,
    val_interval: Annotated[IntOption, typer.Option(help="Steps between validations.", show_default=False)] = None,
    workers: Annotated[
        IntOption, typer.Option(help="Processes that read and augment images.", show_default=False)
    ] = None,
    seed: Annotated[
        IntOption,
        typer.Option(help="Seed of weights, order and augmentation. Default: 0.", show_default=False),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="none; auto: what the model config names; or a checkpoint. Default: auto.",
            show_default=False,
        ),
    ] = None,
    amp: Annotated[bool, typer.Option("--amp", help="Mixed precision, on a GPU.")] = False,
    device: DeviceOption = "auto",
    launcher: LauncherOption = "none",
    run_dir: Annotated[
        Path | None, typer.Option(help="Run directory; by default runs/<method>-<split>.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is in the run directory.")] = False,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set any key of the config: a.b=value; repeatable.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build everything, run one step, write nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a model on a split and write a run directory.

    Keeps the last and the best checkpoint. Ctrl-C finishes the step, saves and stops; --resume goes on exactly where
    it stopped. Flags win over sslseg.toml, which wins over the config; --set wins over all.
    """
    from sslseg.cli.options import find_split
    from sslseg.config import parse_assignment
    from sslseg.train import TrainOptions, train
    from sslseg.workspace import Workspace

    workspace = Workspace.load()
    flags = dict(
        method=method,
        model=model,
        config=config,
        iters=iters,
        epochs=epochs,
        batch_size=batch_size,
        unlabeled_batch_size=unlabeled_batch_size,
        lr=lr,
        crop=crop,
        val_interval=val_interval,
        workers=workers,
        seed=seed,
        pretrained=pretrained,
        device=device if device != "auto" else None,
    )
    # --iters and --epochs exclude each other, so one given as a flag also replaces the other of the file.
    defaults = {
        key: value for key, value in workspace.train().items() if not (key in ("iters", "epochs") and (iters or epochs))
    }
    chosen = defaults | {key: value for key, value in flags.items() if value is not None}
    chosen["crop"] = parse_size(chosen.get("crop"))
    options = TrainOptions(
        **chosen,
        amp=amp,
        launcher=launcher,
        resume=resume,
        dry_run=dry_run,
        assignments=dict(map(parse_assignment, assignments or [])),
    )
    given = find_split(split, data)
    _check_dataset(given, workspace)
    folder = run_dir or workspace.runs / f"{options.method}-{_split_name(split, workspace)}"
    run = train(given, folder, options)
    if dry_run:
        note("dry run: one step done, nothing written")
    record = {} if dry_run else run.read()
    for which in ("last", "best"):
        if record.get(which, {}).get("mIoU") is not None:
            note(f"{which}: mIoU {record[which]['mIoU']:.2f} ({record['protocol']}) at step {record[which]['iter']}")
    emit(
        run.folder,
        {key: record[key] for key in ("method", "seed", "iters", "last", "best", "protocol") if key in record},
        as_json=as_json,
    )


def _split_name(split: Path | None, workspace: Workspace) -> str:
    path = split if split is not None else workspace.newest_split()
    return (path.parent if path.suffix == ".json" else path).absolute().name


def _check_dataset(split: Split, workspace: Workspace) -> None:
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
