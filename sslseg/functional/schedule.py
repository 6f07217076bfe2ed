"""Durations within a training, and how a weight grows over one."""

from __future__ import annotations

import math
import re

from sslseg.errors import UserError

Duration = float | str  # a fraction of training, or such as "3 epochs"
WRITTEN = re.compile(r"\s*([0-9.]+)\s+epochs?\s*")


class Epochs(float):
    """A duration in epochs, which are passes over the unlabeled images."""

    def __repr__(self) -> str:
        return f"{float(self):g} epochs"


def duration(value: Duration, *, name: str) -> float:
    """Return a setting's duration as a fraction of training, or as ``Epochs``; UserError where it is neither."""
    if not isinstance(value, str):
        return float(value)
    found = WRITTEN.fullmatch(value)
    if found is None:
        raise UserError(
            f'method.{name} {value!r} is not a duration; give a fraction of training, or such as "3 epochs"'
        )
    return Epochs(found[1])


def sigmoid_rampup(progress: float, length: float) -> float:
    """Return exp(-5 (1 - t)^2), t growing from 0 to 1 over the first ``length``; Laine and Aila, ICLR 2017, Sec. 2.1."""
    if length <= 0:
        return 1.0
    remaining = 1.0 - min(progress / length, 1.0)
    return math.exp(-5.0 * remaining * remaining)
