"""``--method auto``, the default: the recommended method where a split has unlabeled images, else one that needs none.

Which methods these are is data: ``configs/auto.py``.
"""

from __future__ import annotations

import runpy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sslseg.plugins import AUTO, own_configs

if TYPE_CHECKING:
    from sslseg.config.build import TrainOptions
    from sslseg.splits.split import Split


@dataclass(frozen=True)
class Recommendation:
    """What ``configs/auto.py`` says.

    Attributes:
        recommended: the method for a split with unlabeled images.
        unlabeled_per_rank: the unlabeled images that it needs in each rank's part of a batch, and so in a split.
        without_unlabeled: the method for a split with fewer.
    """

    recommended: str
    unlabeled_per_rank: int
    without_unlabeled: str

    @property
    def summary(self) -> str:
        return f"The default: {self.recommended} for a split with unlabeled images, else {self.without_unlabeled}."


def recommendation() -> Recommendation:
    values = runpy.run_path(str(own_configs() / f"{AUTO}.py"))
    return Recommendation(**{name: values[name] for name in Recommendation.__annotations__})


def is_auto(options: TrainOptions) -> bool:
    """Return whether the program chooses the method; a config names its own."""
    return options.method == AUTO and options.config is None


def choose(split: Split) -> tuple[str, str]:
    """Return the method that ``auto`` stands for, and why."""
    now, number = recommendation(), len(split.unlabeled)
    if number >= now.unlabeled_per_rank:
        return now.recommended, f"recommended where there are unlabeled images ({number:,} here)"
    few = f"only {number} unlabeled, fewer than {now.recommended} mixes" if number else "no unlabeled images"
    return now.without_unlabeled, f"as the split has {few}"


def settle(options: TrainOptions, split: Split) -> tuple[TrainOptions, str]:
    """Return options that name the method which ``auto`` stands for, and why it is this one.

    The recommended method gets the unlabeled images that it needs in a batch, unless the user has said how many there are.
    """
    from mmengine.dist import get_world_size

    from sslseg.config.files import load_method

    name, reason = choose(split)
    options, now, assigned = replace(options, method=name), recommendation(), options.assignments
    given = options.unlabeled_batch_size is not None or "data.unlabeled_batch_size" in assigned
    if name == now.without_unlabeled or given:
        return options, reason
    data, needed = load_method(name).data, now.unlabeled_per_rank * get_world_size()
    labeled = assigned.get("data.batch_size", data.batch_size if options.batch_size is None else options.batch_size)
    number = data.get("unlabeled_batch_size") or labeled
    if not isinstance(number, int) or number >= needed:
        return options, reason
    reason = f"{reason}, with {needed} unlabeled images per iteration, the fewest that it can mix"
    return replace(options, unlabeled_batch_size=needed), reason
