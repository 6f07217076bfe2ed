"""Options that several commands share, and the defaults that come from the working folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sslseg.errors import UserError

if TYPE_CHECKING:
    from sslseg.inference import Protocol
    from sslseg.splits.split import Split

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="The dataset, when it is not the one of sslseg.toml or has moved.", show_default=False),
]
SplitOption = Annotated[
    Path | None,
    typer.Option(
        "--split",
        help="split.json or its folder; by default the source's own, or the newest of the working folder.",
        show_default=False,
    ),
]
ModeOption = Annotated[str, typer.Option(help="How an image is predicted: whole, slide or center-crop.")]
CropOption = Annotated[
    str | None,
    typer.Option(help="Size in pixels, N or HxW, of the window or of the training crop.", show_default=False),
]
StrideOption = Annotated[
    str | None,
    typer.Option(help="Stride of the sliding window, N or HxW; by default two thirds of --crop.", show_default=False),
]
TtaOption = Annotated[bool, typer.Option("--tta", help="Average over six scales (0.5 to 1.75), each also mirrored.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
LauncherOption = Annotated[str, typer.Option(help="none; pytorch (under torchrun), slurm or mpi.")]
WorkersOption = Annotated[int, typer.Option(help="Processes that read and augment images.")]
WhichOption = Annotated[str, typer.Option("--checkpoint", help="Which checkpoint of a run: best or last.")]


def parse_size(text: str | int | None, option: str = "--crop") -> tuple[int, int] | None:
    """Read ``N`` or ``HxW``; raise UserError unless both are positive."""
    if text is None:
        return None
    try:
        sides = [int(part) for part in str(text).lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise UserError(f"{option} {text!r} is not a size; write pixels as N or HxW")
    return sides[0], sides[-1]


def protocol(mode: str, crop: str | None, stride: str | None, *, tta: bool) -> Protocol:
    """Return the protocol that the options describe."""
    from sslseg.inference import Protocol, with_tta

    plain = Protocol(mode=mode, crop=parse_size(crop), stride=parse_size(stride, "--stride"))
    return with_tta(plain) if tta else plain


def check_which(which: str) -> str:
    """Return ``which`` if it names a checkpoint of a run."""
    if which not in ("best", "last"):
        raise UserError(f"--checkpoint {which!r} is unknown; use best or last")
    return which


def find_split(split: Path | None, data: Path | None) -> Split:
    """Return the split that the options name, or the newest of the working folder."""
    from sslseg.artifacts.workspace import Workspace
    from sslseg.splits.split import Split

    if split is None:
        split = Workspace.load().newest_split()
    return Split.load(split, root=data)
