"""``sslseg inspect``."""

from __future__ import annotations

from typing import Annotated

import typer

from sslseg.cli.console import JsonFlag, emit, show, source_argument


def command(
    path: Annotated[str, typer.Argument(help="Split, run directory, checkpoint or store, or '-'.")],
    as_json: JsonFlag = False,
) -> None:
    """Show what an artefact says of itself."""
    from rich.table import Table

    from sslseg.inspect import inspect

    source = source_argument(path) or ""
    record = inspect(source)
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in record.items():
        table.add_row(key, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    show(table, source)
    emit(source, record, as_json=as_json)
