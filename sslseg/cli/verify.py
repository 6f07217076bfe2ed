"""``sslseg verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sslseg.cli.console import JsonFlag, emit, note, source_argument


def command(
    store: Annotated[str, typer.Argument(help="The store, or '-'.")],
    as_json: JsonFlag = False,
) -> None:
    """Read every map of a store and prove that it is complete and undamaged."""
    from sslseg.store import verify_store

    path = Path(source_argument(store) or "")
    summary = verify_store(path)
    note(f"{summary['ids']} ids with {', '.join(summary['kinds'])}: complete and undamaged")
    emit(path, summary, as_json=as_json)
