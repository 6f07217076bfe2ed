"""Stored pseudo-masks as training targets: read with each image, filtered pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sslseg.errors import UserError
from sslseg.store.filters import MaskFilter
from sslseg.store.format import MASKS, RELIABLE, SCORE_LEVELS
from sslseg.store.ranking import KeptImages
from sslseg.store.reader import StoreReader


class PseudoMasks:
    """Adds ``pseudo_map`` to a loaded sample: its stored mask, ignored where a filter drops it or the store marks it as
    unreliable.

    With ``weight``, the name of a score, it also adds ``weight_map``: the score (1 - score if high values mean wrong
    pixels) in stored levels. A sample that the store lacks is ignored everywhere. With ``images``, the others are left out of
    training (``left_out``).

    Raises:
        UserError: the store lacks that score.
    """

    def __init__(
        self,
        store: StoreReader,
        filters: Sequence[MaskFilter] = (),
        *,
        weight: str | None = None,
        images: KeptImages | None = None,
    ) -> None:
        if weight is not None and weight not in store.scores:
            raise UserError(
                f"--weight {weight!r}: store {store.path} holds {', '.join(store.scores) or 'no scores'}; use one of"
                " them"
            )
        self.store, self.filters, self.weight, self.images = store, tuple(filters), weight, images
        self.left_out: frozenset[str] = images.left_out if images is not None else frozenset()

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        results["pseudo_map"] = self.read(results["sample_id"], results["img_shape"])
        results["seg_fields"].append("pseudo_map")
        if self.weight is not None:
            results["weight_map"] = self.read_weight(results["sample_id"], results["img_shape"])
            results["seg_fields"].append("weight_map")
        return results

    def read_weight(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """Return the weight of each pixel in levels of the store, H x W uint16."""
        if self.weight is None or name not in self.store:
            return np.zeros(shape, np.uint16)
        stored = self.store.stored(self.weight, name)
        return stored.copy() if self.store.high(self.weight) == "right" else SCORE_LEVELS - 1 - stored

    def read(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """Return the filtered mask of an image of ``shape``, H x W uint8 (uint16 over 255 classes)."""
        ignored = self.store.ignore_index
        if name not in self.store:
            return np.full(shape, ignored, np.min_scalar_type(ignored))
        mask = self.store.stored(RELIABLE if self.store.has(RELIABLE) else MASKS, name)
        if mask.shape != tuple(shape):
            raise UserError(
                f"store {self.store.path}: the mask of {name!r} is {mask.shape[0]}x{mask.shape[1]}, its image"
                f" {shape[0]}x{shape[1]}; make the store from the images that you train on"
            )
        for kept in self.filters:
            mask = kept.masked(mask, name, self.store)
        return mask.copy()

    def to_dict(self) -> dict[str, Any]:
        """Return the pseudo-masks' entry in a run's config; no path, so that equal runs give equal files."""
        entry: dict[str, Any] = dict(
            content_sha256=self.store.content_sha256, keep=[kept.to_dict() for kept in self.filters]
        )
        if self.weight is not None:
            entry["weight"] = self.weight
        if self.images is not None:
            entry["images"] = self.images.to_dict()
        return entry
