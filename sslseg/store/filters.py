"""Filters on stored masks, such as ``confidence>0.9`` or ``entropy<q80``: the pixels to learn from."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sslseg.errors import UserError
from sslseg.progress import track
from sslseg.store.format import SCORE_LEVELS
from sslseg.store.reader import StoreReader

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
PATTERN = re.compile(r"\s*([\w/-]+)\s*(<=|>=|<|>)\s*(q?)([0-9.]+)\s*")


class MaskFilter(Protocol):
    """What chooses the stored pixels to learn from."""

    @property
    def text(self) -> str: ...

    @property
    def share(self) -> float:
        """Fraction of all stored pixels that it keeps."""

    def masked(self, mask: np.ndarray, name: str, store: StoreReader) -> np.ndarray:
        """Return a mask (H x W) of an id with ``ignore_index`` where it is not kept."""

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Filter:
    """A filter with its threshold for one store.

    Attributes:
        text: as the user wrote it.
        kind: the score.
        threshold: on the score, which lies in [0, 1].
        share: fraction of all pixels that it keeps, in [0, 1].
    """

    text: str
    kind: str
    comparison: str
    threshold: float
    share: float

    def __call__(self, score: np.ndarray) -> np.ndarray:
        """Return where a score map (H x W) is kept."""
        return OPERATORS[self.comparison](score, np.float32(self.threshold))

    def masked(self, mask: np.ndarray, name: str, store: StoreReader) -> np.ndarray:
        """Return a mask (H x W) of an id with ``ignore_index`` where it is not kept."""
        return np.where(self(store.score(self.kind, name)), mask, mask.dtype.type(store.ignore_index))

    def to_dict(self) -> dict[str, Any]:
        return dict(keep=self.text, threshold=self.threshold, share=self.share)


def resolve(texts: Sequence[str], store: StoreReader, *, option: str = "--keep") -> tuple[Filter, ...]:
    """Parse filters of the form SCORE<NUMBER or SCORE<qPERCENT (or <=, >, >=) and find their thresholds in ``store``.

    A percentile is that of all pixels of all images together. ``option`` names the filter in error messages.

    Raises:
        UserError: the form or the number is wrong, the store lacks the score, or nothing would be kept.
    """
    return tuple(_resolve(text, store, option) for text in texts)


def _resolve(text: str, store: StoreReader, option: str) -> Filter:
    match = PATTERN.fullmatch(text)
    example = "write such as 'confidence>0.9' or 'entropy<q80'"
    held = ", ".join(store.scores) or "no scores"
    if match is None:
        raise UserError(f"{option} {text!r} is not understood; {example} (store {store.path} holds {held})")
    kind, comparison, percent, digits = match.groups()
    if kind not in store.scores:
        raise UserError(f"{option} {text!r}: store {store.path} holds {held}, not {kind}; {example}")
    try:
        number = float(digits)
    except ValueError as error:
        raise UserError(f"{option} {text!r}: {digits!r} is not a number; write such as 'confidence>0.9'") from error
    if number > (100 if percent else 1):
        raise UserError(f"{option} {text!r}: {kind} lies between 0 and 1, a percentile (q) between 0 and 100")
    counts = np.zeros(SCORE_LEVELS, np.int64)
    for name in track(store.ids, f"read {kind}", total=len(store)):
        counts += np.bincount(store.stored(kind, name).ravel(), minlength=SCORE_LEVELS)
    scores = np.arange(SCORE_LEVELS).astype(np.float32) * store.scale(kind)
    if percent:
        level = int(np.searchsorted(np.cumsum(counts), number / 100 * counts.sum()))
        number = float(scores[min(level, SCORE_LEVELS - 1)])
    share = float(counts[OPERATORS[comparison](scores, np.float32(number))].sum() / counts.sum())
    if share == 0:
        raise UserError(f"{option} {text!r} keeps no pixel of {store.path}; relax it")
    return Filter(text, kind, comparison, number, share)
