"""How long a training is, in iterations; an epoch is one pass over the unlabeled images, whatever a method reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Lengths:
    """The length of a training.

    Attributes:
        iterations: of the whole training.
        iterations_per_epoch: of one pass over the unlabeled images (over the labeled ones where there are no others).
    """

    iterations: int
    iterations_per_epoch: int


def batch_counts(config: Any, streams: Iterable[str]) -> dict[str, int]:
    """Return how many images of each stream a batch holds, over all ranks together."""
    labeled = config.data.batch_size
    unlabeled = config.data.get("unlabeled_batch_size") or labeled
    return {name: labeled if name == "labeled" else unlabeled for name in streams}


def iterations_per_epoch(config: Any, sizes: Mapping[str, int]) -> int:
    """Return the iterations of one epoch.

    Args:
        sizes: number of images by subset of the split.
    """
    stream = "unlabeled" if sizes["unlabeled"] else "labeled"
    return math.ceil(sizes[stream] / batch_counts(config, (stream,))[stream])


def resolve(config: Any, sizes: Mapping[str, int], streams: Iterable[str], *, epochs: int | None) -> Lengths:
    """Return the length of a training from the ``schedule`` of its config.

    ``schedule.iterations`` wins where it is set; else ``schedule.samples`` counts all images of all batches (N in Sec. 4 of
    Ke et al., ECCV 2020), else ``schedule.epochs``.

    Args:
        streams: what the method reads.
        epochs: asked for by the user; wins over all.
    """
    schedule = config.schedule
    per_epoch = iterations_per_epoch(config, sizes)
    iterations = schedule.get("iterations")
    if epochs is not None:
        iterations = epochs * per_epoch
    elif iterations is None and schedule.get("samples") is not None:
        iterations = schedule.samples // sum(batch_counts(config, streams).values())
    elif iterations is None and schedule.get("epochs") is not None:
        iterations = schedule.epochs * per_epoch
    return Lengths(iterations, per_epoch)
