"""``sslseg merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sslseg.cli.console import JsonFlag, emit


def command(
    stores: Annotated[list[Path], typer.Argument(help="The shards, in any order.")],
    out: Annotated[Path, typer.Option("--out", help="The store to write.")],
    as_json: JsonFlag = False,
) -> None:
    """Merge the shards of `sslseg pseudolabel --shard i/n` into one store."""
    from sslseg.store import StoreReader, merge_stores

    path = merge_stores(stores, out)
    emit(path, dict(ids=len(StoreReader(path))), as_json=as_json)
