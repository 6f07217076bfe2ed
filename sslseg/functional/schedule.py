"""Durations within a training, EMA decays, and how a weight grows; what either means in a training of another length."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated

from sslseg.errors import UserError
from sslseg.settings import FollowsLength

WRITTEN = re.compile(r"\s*([0-9.]+(?:e[-+]?[0-9]+)?)\s+epochs?\s*")


def rescaled_duration(value: float | str, ratio: float) -> float | str:
    """Return epochs of a training as those of another length that are the same fraction of it; ``ratio``: old / new length."""
    found = WRITTEN.fullmatch(value) if isinstance(value, str) else None
    return value if found is None else f"{float(found[1]) / ratio:.12g} epochs"


def rescaled_decay(decay: float, ratio: float) -> float:
    """Return the EMA decay that forgets over the same fraction of another training: decay^ratio; ``ratio``: old / new length.

    What lies a fraction f of the training of R iterations back has the weight decay^(f R), and so it is here.
    """
    return decay**ratio if 0.0 <= decay <= 1.0 else decay


def rescaled_decays(decays: Sequence[tuple[float, float]], ratio: float) -> Sequence[tuple[float, float]]:
    """Return an EMA decay schedule, milestones (fraction of training, decay), for another length."""
    made = [(start, rescaled_decay(decay, ratio)) for start, decay in decays]
    return decays if made == [(start, decay) for start, decay in decays] else made


# Types of settings that follow the length of the training (``sslseg.config.lengths``).
Duration = Annotated[float | str, FollowsLength(rescaled_duration)]  # a fraction of training, or such as "3 epochs"
Decay = Annotated[float, FollowsLength(rescaled_decay)]
DecaySchedule = Annotated[Sequence[tuple[float, float]], FollowsLength(rescaled_decays)]


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
