"""``sslseg export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sslseg.cli.console import JsonFlag, emit, source_argument
from sslseg.cli.options import WhichOption


def command(
    source: Annotated[
        str | None,
        typer.Argument(help="Run directory or checkpoint, or '-'; by default the newest run.", show_default=False),
    ] = None,
    which: WhichOption = "best",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write; by default <run>/export.", show_default=False),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a plain mmseg config and checkpoint, which mmseg's init_model loads without sslseg."""
    from sslseg.artifacts.find import find_model
    from sslseg.artifacts.workspace import Workspace
    from sslseg.cli.options import check_which
    from sslseg.export import export

    model = find_model(source_argument(source) or Workspace.load().newest_run(), which=check_which(which))
    folder = out or (model.run.folder if model.run is not None else model.checkpoint.parent) / "export"
    emit(export(model, folder), dict(checkpoint=str(model.checkpoint)), as_json=as_json)
