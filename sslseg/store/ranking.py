"""The most reliable images of a store, by a score of whole images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sslseg.errors import UserError
from sslseg.store.format import AGREEMENT
from sslseg.store.reader import StoreReader


@dataclass(frozen=True)
class KeptImages:
    """The images of a store that are learned from.

    Attributes:
        fraction: what the user asked for.
        kept: the best first.
        threshold: the lowest score among them.
        tied: whether an image that is left out has the same score, so that names decided.
    """

    fraction: float
    kept: tuple[str, ...]
    left_out: frozenset[str]
    threshold: float
    tied: bool

    def to_dict(self) -> dict[str, Any]:
        number = len(self.kept)
        return dict(score=AGREEMENT, fraction=self.fraction, kept=number, of=number + len(self.left_out))


def ranked(store: StoreReader, names: Iterable[str]) -> list[str]:
    """Return ids of ``store`` by agreement, the best first, those of equal agreement in alphabetical order."""
    values = store.image_scores[AGREEMENT]
    return sorted(names, key=lambda name: (-values[name], name))


def keep_images(
    fraction: float, store: StoreReader, names: Iterable[str], *, option: str = "--keep-images"
) -> KeptImages:
    """Return the ``fraction`` of the ids ``names`` with the highest agreement: rounded down, at least one.

    Raises:
        UserError: it is not a fraction, or the store holds no agreement.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"{option} {fraction:g} is not a fraction of the images; give such as 0.5 for the best half")
    if AGREEMENT not in store.image_scores:
        raise UserError(
            f"{option}: store {store.path} holds no agreement of its images; make one with `sslseg pseudolabel --agreement`"
        )
    order = ranked(store, names)
    number = max(math.floor(fraction * len(order) + 1e-9), 1)  # 0.29 * 100 is 28.999...
    kept = tuple(order[:number])
    left_out, scores = order[number:], store.image_scores[AGREEMENT]
    tied = bool(left_out) and scores[left_out[0]] == scores[kept[-1]]
    return KeptImages(fraction, kept, frozenset(left_out), scores[kept[-1]], tied)
