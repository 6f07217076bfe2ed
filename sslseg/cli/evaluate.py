"""``sslseg eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sslseg.cli.console import JsonFlag, emit, is_main_process, note, show, source_argument
from sslseg.cli.options import (
    CropOption,
    DataOption,
    DeviceOption,
    LauncherOption,
    ModeOption,
    SplitOption,
    StrideOption,
    TtaOption,
    WhichOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from sslseg.splits.split import Split


def command(
    source: Annotated[
        str | None,
        typer.Argument(
            help="Run directory, checkpoint or store, or '-'; by default the newest run.", show_default=False
        ),
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option(
            help="Images to score: val, unlabeled, labeled, train or all. Default: val, or all images of a store.",
            show_default=False,
        ),
    ] = None,
    which: WhichOption = "best",
    split: SplitOption = None,
    data: DataOption = None,
    mode: ModeOption = "whole",
    crop: CropOption = None,
    stride: StrideOption = None,
    tta: TtaOption = False,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    launcher: LauncherOption = "none",
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Folder for panels (image, truth, prediction, errors, further score maps of a store) and the confusion"
            " matrix.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File for the scores; by default beside the source.", show_default=False),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Score a model, or the masks of a store, against the labels.

    Of a run, the best checkpoint is scored, and the scores recorded in training are shown, too. Of a store, the images
    with a label are scored. The mode is part of every number.
    """
    from sslseg.artifacts.find import find_model, identify
    from sslseg.artifacts.run import enclosing_run
    from sslseg.artifacts.workspace import Workspace
    from sslseg.cli.options import check_which, find_split, protocol
    from sslseg.distributed import launch
    from sslseg.evaluate import evaluate_model, evaluate_store
    from sslseg.files import write_json
    from sslseg.store import StoreReader

    launch(launcher, device)
    artifact = identify(source_argument(source) or Workspace.load().newest_run())
    if artifact.kind == "store":
        store = StoreReader(artifact.path)
        run = enclosing_run(artifact.path)
        given = find_split(split or (run.split_folder if run is not None else None), data)
        scores = evaluate_store(store, given, subset=subset, figures=figures)
        target = artifact.path.with_name(
            "-".join([artifact.path.stem, "eval", *([subset] if subset else [])]) + ".json"
        )
    else:
        model = find_model(artifact.path, which=check_which(which))
        given = find_split(split or (model.run.split_folder if model.run is not None else None), data)
        chosen = protocol(mode, crop, stride, tta=tta)
        subset = subset or "val"
        scores = evaluate_model(model, given, subset=subset, protocol=chosen, workers=workers, figures=figures)
        scores |= _training_scores(model)
        name = "-".join(["eval", subset, model.checkpoint.stem, *_words(chosen)])
        target = (model.run.folder if model.run is not None else model.checkpoint.parent) / f"{name}.json"
    path = out or target
    if is_main_process():
        _show(scores, given)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, scores)
    emit(path, scores, as_json=as_json)


def _words(protocol: Any) -> list[str]:
    return [word for word in "".join(c if c.isalnum() or c in ".-" else " " for c in str(protocol)).split() if word]


def _training_scores(model: Any) -> dict[str, Any]:
    """Return the scores of the last and the best checkpoint that training recorded."""
    record = model.run.read() if model.run is not None else {}
    keys = ("last", "best", "protocol")
    return (
        dict(training={key: record[key] for key in keys}, method=record["method"], seed=record["seed"])
        if "last" in record
        else {}
    )


def _show(scores: dict[str, Any], split: Split) -> None:
    from rich.table import Table

    table = Table()
    for heading in ("class", "IoU", "accuracy"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name in split.dataset.classes:
        cells = (scores[key][name] for key in ("IoU", "Acc"))
        table.add_row(name, *("-" if value is None else f"{value:.2f}" for value in cells))
    table.add_section()
    table.add_row("mean", f"{scores['mIoU']:.2f}", f"{scores['mAcc']:.2f}", style="bold")
    show(table, f"{split.dataset.name}, {scores['subset']} ({scores['images']} images), {scores['protocol']}")
    training = scores.get("training", {})
    recorded = [
        f"{which} checkpoint {training[which]['mIoU']:.2f} (iteration {training[which]['iteration']})"
        for which in ("last", "best")
        if training.get(which, {}).get("mIoU") is not None
    ]
    note(f"mIoU {scores['mIoU']:.2f}, pixel accuracy {scores['aAcc']:.2f} ({scores['protocol']})")
    for kind, found in scores.get("other_masks", {}).items():
        note(f"mIoU of {kind}: {found['mIoU']:.2f}, pixel accuracy {found['aAcc']:.2f}")
    for kind, found in scores.get("error_detection", {}).items():
        if found["auroc"] is not None:
            name = f"1 - {kind}" if found["high"] == "right" else kind
            values = f"AUROC {found['auroc']:.3f}, AP {found['average_precision']:.3f}"
            note(f"misclassification detection with {name}: {values}")
    if "reliable" in scores:
        found = scores["reliable"]
        note(f"reliable pixels: {found['share']:.1f}%, with mIoU {found['mIoU']:.2f}")
    if "agreement" in scores:
        found = scores["agreement"]
        note(
            f"mIoU of the images with the highest agreement {found['best_half']:.2f}, of the other half {found['rest']:.2f}"
        )
    if recorded:
        note(f"mIoU in training ({training['protocol']}): {', '.join(recorded)}")
