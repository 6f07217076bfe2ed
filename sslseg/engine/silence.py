"""Warnings of a training in which something has gone quiet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Silence:
    """What teaches nothing any more: terms of the loss that stay exactly 0, and classes of which no pseudo-label is accepted.

    Both are judged over one epoch, from the start of training over two, since many methods warm up in the first; in a shorter
    training over all of it. A resumed run counts from where it goes on.

    Attributes:
        first: the iteration at which training begins or goes on.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes, self.first = classes, 0
        self.since: dict[str, int] = {}  # the last iteration with a signal, by what was seen
        self.said: set[str] = set()

    def messages(
        self, iteration: int, values: dict[str, float], more: dict[str, Any], *, epoch: int, last: bool
    ) -> list[str]:
        """Return what is to be said after a record."""
        found = []
        for name, value in values.items():
            if "loss" in name and self._silent(name, value != 0.0, iteration, epoch=epoch, last=last):
                found.append(
                    f"{name} is exactly 0 since iteration {self.since[name]}: this term teaches nothing; look at its weight and"
                    " threshold"
                )
        dead: dict[str, int] = {}
        taken = more.get("pseudo_labels", {})
        rows = zip(*(taken.get(key, ()) for key in ("predicted", "accepted", "labels")), strict=True)
        for name, (predicted, accepted, labeled) in zip(self.classes, rows, strict=False):
            key = f"class {name!r}"
            if labeled:
                self.since.setdefault(f"{key} is labeled", iteration)
            alive = bool(predicted and accepted) or f"{key} is labeled" not in self.since
            if self._silent(key, alive, iteration, epoch=epoch, last=last):
                dead[name] = self.since[key]
        if dead:
            found.append(
                f"no pseudo-label of {', '.join(map(repr, dead))} was accepted since iteration {max(dead.values())}, though there are"
                " labels of it: the student may forget it; a lower threshold accepts more (`pseudo_labels` in metrics.jsonl)"
            )
        return found

    def _silent(self, name: str, alive: bool, iteration: int, *, epoch: int, last: bool) -> bool:
        if alive:
            self.since[name] = iteration
            return False
        start = self.since.setdefault(name, self.first)
        long_enough = iteration - start >= (2 * epoch if start == 0 else epoch) or (last and start == 0)
        if name in self.said or not long_enough:
            return False
        self.said.add(name)
        return True
