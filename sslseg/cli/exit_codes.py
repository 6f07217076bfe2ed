"""Exceptions to one clear line and an exit code: 2 wrong input, 1 internal error, 130 interrupted."""

from __future__ import annotations

import errno
import sys
import traceback
from typing import Any

import typer

from sslseg.errors import Interrupted, UserError
from sslseg.progress import stderr

# Typer carries its own copy of click and names only the leaves of its exceptions.
CommandLineError: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

INPUT, INTERNAL, INTERRUPTED = 2, 1, 130

DISK = {
    errno.ENOSPC: "no space left on the disk; free some, then run the same command with --resume",
    errno.EDQUOT: "the disk quota is used up; free some space, then run the same command with --resume",
    errno.EFBIG: "the file would be larger than allowed here; write to another disk with --out or --run-dir",
    errno.EROFS: "the disk is read-only; write elsewhere with --out or --run-dir",
    errno.EACCES: "permission denied; fix the permissions or write elsewhere with --out or --run-dir",
    errno.EPERM: "operation not permitted; fix the permissions or write elsewhere with --out or --run-dir",
}


def fail(message: str) -> None:
    """Print one error line on stderr, unwrapped so that it stays one line in a log."""
    line = " ".join(message.split())
    stderr.print(f"[bold red]error:[/] {escape(line)}", soft_wrap=True)


def escape(text: str) -> str:
    from rich.markup import escape as rich_escape

    return rich_escape(text)


def exit_code(error: BaseException) -> int:
    """Report ``error`` on stderr and return the process's exit code."""
    if isinstance(error, (Interrupted, KeyboardInterrupt, typer.Abort)):
        stderr.print(f"interrupted: {error}" if str(error) else "interrupted", markup=False, soft_wrap=True)
        return INTERRUPTED
    if isinstance(error, UserError):
        # The error of a loader's worker comes with the worker's traceback before its own text.
        fail(str(error).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2])
        return INPUT
    if isinstance(error, CommandLineError):
        if not error.format_message():
            return INPUT  # no arguments at all: the help has been shown
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context is not None else ""
        fail(error.format_message().rstrip(".") + hint)
        return INPUT
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
        # The reader of our output has gone, as `| head` does; Typer turns it into SystemExit for its own output.
        sys.stderr.close()
        return INPUT
    if isinstance(error, OSError) and error.errno in DISK:
        where = error.filename or error.filename2 or "the output"
        fail(f"cannot write {where}: {DISK[error.errno]}")
        return INPUT
    traceback.print_exception(error, file=sys.stderr)
    fail(f"internal error ({type(error).__name__}); please report it with the lines above")
    return INTERNAL
