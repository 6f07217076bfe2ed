"""``sslseg pseudolabel``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sslseg.cli.console import JsonFlag, emit, source_argument
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


def command(
    source: Annotated[
        str | None,
        typer.Argument(
            help="Run directory, checkpoint or store, or '-'; by default the newest run.", show_default=False
        ),
    ] = None,
    subset: Annotated[
        str, typer.Option(help="Images of the split: unlabeled, labeled, train, val or all.")
    ] = "unlabeled",
    images: Annotated[
        Path | None, typer.Option(help="Predict a folder of images instead of a subset.", show_default=False)
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(
            help="What to store beside the masks, with commas: confidence, entropy, and maps of the method's own, such as flaw;"
            " or none. Default: all scores that the model gives.",
            show_default=False,
        ),
    ] = None,
    reliability: Annotated[
        str | None,
        typer.Option(
            metavar="qPERCENT",
            help="Also store masks in which pixels have no class whose entropy exceeds this percentile of all pixels, such"
            " as q80.",
            show_default=False,
        ),
    ] = None,
    agreement: Annotated[
        bool,
        typer.Option(
            "--agreement",
            help="Also store how well the snapshots of the run (schedule.snapshots) agree with its last model on each image.",
        ),
    ] = False,
    predictor: Annotated[
        str | None,
        typer.Option(
            help="How the method predicts, where it has several ways; `sslseg methods NAME` lists them.",
            show_default=False,
        ),
    ] = None,
    references: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="For a predictor that compares with labeled images: how many, the most similar ones. Default: 1.",
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
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass, of one size.")] = 4,
    workers: WorkersOption = 2,
    device: DeviceOption = "auto",
    launcher: LauncherOption = "none",
    shard: Annotated[
        str | None,
        typer.Option(
            help="Part i/n of the images, i from 0, for independent jobs; join with merge.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The store; by default <run>/stores/<subset>.h5.", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an unfinished store; a finished one is kept.")
    ] = False,
    export_png: Annotated[
        Path | None,
        typer.Option(
            help="Also write palette PNGs, overlays and heat maps of the scores into this folder.", show_default=False
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Predict images with a trained model and write masks and scores into an HDF5 store."""
    from sslseg.artifacts.find import check_classes, find_model
    from sslseg.artifacts.workspace import Workspace
    from sslseg.cli.options import check_which, find_split, protocol
    from sslseg.distributed import launch
    from sslseg.pseudolabel import PseudolabelOptions, folder_samples, pseudolabel
    from sslseg.pseudolabel import export_png as export
    from sslseg.store import StoreReader

    options = PseudolabelOptions(
        scores=None if scores is None else tuple(name for name in map(str.strip, scores.split(",")) if name != "none"),
        protocol=protocol(mode, crop, stride, tta=tta),
        batch_size=batch_size,
        workers=workers,
        shard=parse_shard(shard),
        resume=resume,
        agreement=agreement,
        reliability=reliability,
        predictor=predictor,
        references=references,
    )
    launch(launcher, device)
    model = find_model(source_argument(source) or Workspace.load().newest_run(), which=check_which(which))
    if split is None and model.run is not None:
        split = model.run.split_folder
    given = find_split(split, data)
    check_classes(model, given.dataset.classes, where=f"dataset {given.dataset.name!r}")
    samples = folder_samples(images) if images is not None else given.samples(subset)
    part = images.absolute().name if images is not None else subset
    part_name = part if predictor in (None, next(iter(model.method.predictors))) else f"{part}-{predictor}"
    name = part_name if shard is None else f"{part_name}-shard-{options.shard[0]}-of-{options.shard[1]}"
    folder = model.run.stores if model.run is not None else model.checkpoint.parent / "stores"
    path = pseudolabel(
        model,
        samples,
        out or folder / f"{name}.h5",
        options,
        description=given.dataset,
        provenance=dict(subset=part, data=given.dataset.root),
        labeled=given.samples("labeled"),
    )
    store = StoreReader(path)
    if export_png is not None:
        export(store, samples, export_png)
    emit(
        path,
        dict(ids=len(store), kinds=list(store.kinds), subset=part, checkpoint=str(model.checkpoint)),
        as_json=as_json,
    )


def parse_shard(text: str | None) -> tuple[int, int]:
    """Read ``i/n``, i from 0; raise UserError unless 0 <= i < n."""
    from sslseg.errors import UserError

    if text is None:
        return 0, 1
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or int(parts[0]) >= int(parts[1]):
        raise UserError(f"--shard {text!r} is not i/n with i from 0 to n - 1, such as 0/4")
    return int(parts[0]), int(parts[1])
