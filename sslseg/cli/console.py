"""The terminal output that commands share: one line on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from sslseg.errors import UserError
from sslseg.progress import is_main_process, note, stderr

__all__ = ["JsonFlag", "emit", "is_main_process", "note", "run", "show", "source_argument", "stderr"]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of the path.")]


def emit(path: Path | str, record: dict[str, Any] | None = None, *, as_json: bool = False) -> None:
    """Print the command's only line on stdout: the path of what it made, or ``record`` as JSON with the path in it."""
    if is_main_process():
        line = json.dumps({"path": str(path), **(record or {})}) if as_json else str(path)
        print(line, flush=True)


def source_argument(value: str | None) -> str | None:
    """Resolve ``-`` to the one line that the command before us in the pipeline printed."""
    if value != "-":
        return value
    line = sys.stdin.readline().strip()
    if not line:
        raise UserError(
            "stdin is empty: the command before '-' in the pipeline failed or printed no path; see its message above"
        )
    if line.startswith("{"):
        try:
            return str(json.loads(line)["path"])
        except (ValueError, KeyError) as error:
            raise UserError(
                f"stdin does not hold a path: {line[:80]!r}; pipe the output of another sslseg command"
            ) from error
    return line


def show(table: Any, title: str) -> None:
    """Print a Rich table on stderr under a title that is not wrapped to the table's width."""
    stderr.print(f"\n{escape(title)}", style="bold", soft_wrap=True)
    stderr.print(table)


def run(main: Callable[[], int | None]) -> int:
    """Call ``main`` and turn what it raises into the contract's exit codes (0, 1, 2, 130)."""
    from sslseg.cli.exit_codes import exit_code

    try:
        # Outside its standalone mode Typer returns the code of `typer.Exit`, and a command's own result is None.
        return main() or 0
    except BaseException as error:
        return exit_code(error)
