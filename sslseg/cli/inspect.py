"""``sslseg inspect``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sslseg.cli.console import JsonFlag, emit, show, source_argument


def command(
    path: Annotated[str, typer.Argument(help="Split, run directory, checkpoint or store, or '-'.")],
    as_json: JsonFlag = False,
) -> None:
    """Show the metadata of a split, a run, a checkpoint or a store."""
    from rich.table import Table

    from sslseg.inspect import inspect

    source = source_argument(path) or ""
    record = inspect(source)
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in record.items():
        table.add_row(key, plain(value))
    show(table, source)
    emit(source, record, as_json=as_json)


def plain(value: Any) -> str:
    """Return a value as a reader likes it: lists and dictionaries without brackets, short numbers."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
