"""Progress of long work: a Rich bar on a terminal, plain lines in a file; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console

T = TypeVar("T")
PLAIN_INTERVAL_SECONDS = 15.0

stderr = Console(stderr=True, highlight=False)


def is_main_process() -> bool:
    """True on rank 0 of a distributed launch and everywhere outside one; imports nothing heavy."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is None or not distributed.is_initialized() or distributed.get_rank() == 0


def note(message: str) -> None:
    """Print one plain line on stderr, on the main process."""
    if is_main_process():
        stderr.print(message, markup=False, soft_wrap=True)


def track(items: Iterable[T], description: str, *, total: int, enabled: bool = True) -> Iterator[T]:
    """Yield ``items``, showing on the main process how many of ``total`` are done."""
    if not (enabled and is_main_process()):
        yield from items
    elif stderr.is_terminal:
        yield from _track_bar(items, description, total)
    else:
        yield from _track_lines(items, description, total)


def _track_bar(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task)


def _track_lines(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    last = time.monotonic()
    for index, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if index == total or now - last >= PLAIN_INTERVAL_SECONDS:
            note(f"{description} {index}/{total}")
            last = now
