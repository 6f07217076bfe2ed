"""Confidence thresholds by class, chosen so that on held-out labels enough of the accepted pixels are right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sslseg.data.description import DatasetDescription, Sample
from sslseg.data.labels import ignore_value
from sslseg.data.reading import label_table, read_mask
from sslseg.errors import UserError
from sslseg.progress import track
from sslseg.store.format import SCORE_LEVELS, SCORE_SCALE
from sslseg.store.reader import StoreReader

CONFIDENCE = "confidence"
FEWEST = 1000  # pixels of a class in the held-out images, below which the threshold of all classes together is taken


@dataclass(frozen=True)
class PrecisionFilter:
    """Keeps the pixels whose confidence reaches the threshold of their class; a filter of stored masks.

    Attributes:
        precision: the fraction of accepted pixels that must be right on held-out labels.
        thresholds: by class, in levels of the store; ``SCORE_LEVELS`` where no threshold reaches the precision.
        share: fraction of all stored pixels that it keeps.
    """

    precision: float
    thresholds: tuple[int, ...]
    share: float

    @property
    def text(self) -> str:
        return f"precision>={self.precision:g}"

    def described(self, classes: Sequence[str]) -> str:
        """Return the threshold of each class in words."""
        values = [f"{level * SCORE_SCALE:.3f}" if level < SCORE_LEVELS else "none passes" for level in self.thresholds]
        return ", ".join(f"{name} {value}" for name, value in zip(classes, values, strict=True))

    def masked(self, mask: np.ndarray, name: str, store: StoreReader) -> np.ndarray:
        """Return a mask (H x W) of an id with ``ignore_index`` where it is not kept."""
        kept = accepted(mask, store.stored(CONFIDENCE, name), self.thresholds)
        return np.where(kept, mask, mask.dtype.type(store.ignore_index))

    def to_dict(self) -> dict[str, Any]:
        return dict(keep=self.text, thresholds=list(self.thresholds), share=self.share)


def accepted(mask: np.ndarray, levels: np.ndarray, thresholds: Iterable[int]) -> np.ndarray:
    """Return where the confidence of a mask reaches the threshold of its class; never where it has no class.

    **Shape**: H x W integer twice -> H x W bool.
    """
    known = np.fromiter(thresholds, np.int64)
    table = np.full(np.iinfo(mask.dtype).max + 1, SCORE_LEVELS, np.int64)
    table[: len(known)] = known
    return levels >= table[mask]


def class_thresholds(right: np.ndarray, wrong: np.ndarray, precision: float) -> tuple[int, ...]:
    """Return for each class the lowest level from which on at least ``precision`` of the pixels are right.

    A class with fewer than ``FEWEST`` pixels gets the level of all classes together.

    **Shape**: counts of pixels by predicted class and level of confidence, C x levels each -> C.
    """

    def lowest(right: np.ndarray, wrong: np.ndarray) -> int:
        above, all_above = (np.cumsum(counts[::-1])[::-1] for counts in (right, right + wrong))
        enough = (all_above > 0) & (above >= precision * all_above)
        return int(enough.argmax()) if enough.any() else SCORE_LEVELS

    common = lowest(right.sum(axis=0), wrong.sum(axis=0))
    few = (right + wrong).sum(axis=1) < FEWEST
    return tuple(common if few[c] else lowest(right[c], wrong[c]) for c in range(len(right)))


def precision_filter(
    store: StoreReader,
    held_out: StoreReader,
    samples: dict[str, Sample],
    description: DatasetDescription,
    *,
    precision: float,
    learned: Iterable[str],
) -> PrecisionFilter:
    """Choose the thresholds on ``held_out``, a store of the same model, and return the filter for ``store``.

    Args:
        samples: the images of the split by id, of which the held-out ones need masks.
        learned: ids of the images that the model has learned from.

    Raises:
        UserError: the stores are of different models or lack the confidence, a held-out image has no mask or is among ``learned``, or
            nothing would be kept.
    """
    if not 0 < precision <= 1:
        raise UserError(f"--keep-precise {precision:g} is not a fraction of pixels; give a number above 0, up to 1")
    for given in (store, held_out):
        if CONFIDENCE not in given.scores:
            raise UserError(
                f"--keep-precise needs the confidence, which store {given.path} does not hold; make it again"
            )
    if store.header.checkpoint_sha256 != held_out.header.checkpoint_sha256:
        raise UserError(
            f"--held-out {held_out.path} was made by another model than {store.path}; predict both with one"
        )
    learned = set(learned)
    table, ignored = label_table(description), ignore_value(description.num_classes)
    counts = np.zeros((2, description.num_classes, SCORE_LEVELS), np.int64)  # wrong, right
    for name in track(held_out.ids, "read held-out labels", total=len(held_out)):
        sample = samples.get(name)
        if sample is None or sample.mask is None or name in learned:
            why = "is a training image" if name in learned else "has no mask in the dataset"
            raise UserError(
                f"--held-out {held_out.path}: {name!r} {why}; give a store of labeled images apart, such as val"
            )
        mask, label = held_out.mask(name), read_mask(sample.mask, table)
        if mask.shape != label.shape:
            raise UserError(f"--held-out {held_out.path}: {name!r} is {mask.shape}, its label {label.shape}")
        known = label != ignored
        np.add.at(
            counts, ((mask == label)[known].astype(int), mask[known], held_out.stored(CONFIDENCE, name)[known]), 1
        )
    thresholds = class_thresholds(counts[1], counts[0], precision)
    kept = total = 0
    for name in track(store.ids, f"read {CONFIDENCE}", total=len(store)):
        mask = store.mask(name)
        kept += int(accepted(mask, store.stored(CONFIDENCE, name), thresholds).sum())
        total += mask.size
    if not kept:
        raise UserError(f"--keep-precise {precision:g} keeps no pixel of {store.path}; lower it")
    return PrecisionFilter(precision, thresholds, kept / total)
