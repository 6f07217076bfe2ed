"""How long a training is, in iterations; an epoch is one pass over the unlabeled images, whatever a method reads.

EMA decays and durations in epochs are stated for the length of their config (or ``schedule.stated_for``). In a training of
another length (``--iterations``, ``--epochs``, an inherited schedule) they become those that mean the same fraction of
training, unless ``--set`` gives them. The config of a run holds the values that it uses, and under ``rescaled`` both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sslseg.config.assignments import apply_assignments
from sslseg.errors import UserError
from sslseg.settings import rescaled

RESCALED = "rescaled"


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


def resolve(
    config: Any, sizes: Mapping[str, int], streams: Iterable[str], *, schedule: Any = None, epochs: int | None = None
) -> Lengths:
    """Return the length of a training from the ``schedule`` of its config.

    ``schedule.iterations`` wins where it is set; else ``schedule.samples`` counts all images of all batches (N in Sec. 4 of
    Ke et al., ECCV 2020), else ``schedule.epochs``. With ``schedule.samples_of="labeled"`` N is that of a split with all
    labels, and shrinks with the share of images that are labeled: as many passes over them (rule 2 there).

    Args:
        streams: what the method reads.
        schedule: another one instead.
        epochs: asked for by the user; wins over all.
    """
    schedule = config.schedule if schedule is None else schedule
    per_epoch = iterations_per_epoch(config, sizes)
    iterations = schedule.get("iterations")
    if epochs is not None:
        iterations = epochs * per_epoch
    elif iterations is None and schedule.get("samples") is not None:
        samples, basis = schedule.samples, schedule.get("samples_of", "all")
        if basis not in ("all", "labeled"):
            raise UserError(f"schedule.samples_of is {basis!r}; it can be 'all' or 'labeled'")
        if basis == "labeled":
            samples = samples * sizes["labeled"] // (sizes["labeled"] + sizes["unlabeled"])
        iterations = samples // sum(batch_counts(config, streams).values())
    elif iterations is None and schedule.get("epochs") is not None:
        iterations = schedule.epochs * per_epoch
    return Lengths(iterations, per_epoch)


def snapshot_iterations(schedule: Any) -> tuple[int, ...]:
    """Return the iterations after which a training keeps a snapshot: ``schedule.snapshots``, fractions of its length.

    Raises:
        UserError: they are not fractions.
    """
    fractions = schedule.get("snapshots") or ()
    if not isinstance(fractions, (list, tuple)) or not all(
        isinstance(part, float) and 0.0 < part < 1.0 for part in fractions
    ):
        raise UserError(f"schedule.snapshots is {fractions!r}; give fractions of training, such as [0.333,0.667]")
    made = {round(part * schedule.iterations) for part in fractions}
    return tuple(sorted(made - {0, schedule.iterations}))


def rescale(config: Any, cls: type, stated_for: int | None, *, literal: Iterable[str]) -> None:
    """Let the settings of the method follow the length of the training.

    Args:
        stated_for: the iterations that they are made for; None: those of the training.
        literal: settings, as dotted keys, that the user has set.
    """
    config.pop(RESCALED, None)
    iterations = config.schedule.iterations
    if stated_for is None or stated_for == iterations:
        return
    if not isinstance(stated_for, int) or stated_for < 1:
        raise UserError(
            f"schedule.stated_for is {stated_for!r}; give the iterations that the config's settings are made for"
        )
    changes = rescaled(cls, config.method, stated_for / iterations, literal=literal)
    apply_assignments(config, {key: new for key, (_, new) in changes.items()})
    if changes:
        config[RESCALED] = dict(stated_for=stated_for, settings=changes)


def rescaling_messages(config: Any) -> list[str]:
    """Return what the user should know about settings that follow the length of the training."""
    made = config.get(RESCALED)
    if made is None:
        return []
    changes = [f"{key} {_short(stated)} -> {_short(now)}" for key, (stated, now) in made.settings.items()]
    return [
        f"{', '.join(changes)}: stated for {made.stated_for:,} iterations, in this run of {config.schedule.iterations:,} the"
        f" same fraction of training (--set {next(iter(made.settings))}=... sets it)"
    ]


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
