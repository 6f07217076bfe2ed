"""Stored pseudo-masks: weights by any score of the store, in the direction that its kind declares."""

from __future__ import annotations

import numpy as np
import pytest

from sslseg.data.pseudo_masks import PseudoMasks
from sslseg.errors import UserError
from sslseg.store import StoreReader
from sslseg.store.filters import resolve
from tests.data import make


def test_a_pixel_that_is_predicted_right_weighs_more() -> None:
    store = StoreReader(make.STORE)
    name = store.ids[0]
    for score, expected in (
        ("confidence", store.confidence(name)),
        ("margin", store.score("margin", name)),
        ("doubt", 1 - np.minimum(*(store.score(f"doubt_maps/{model}", name) for model in ("first", "second")))),
    ):
        masks = PseudoMasks(store, weight=score)
        np.testing.assert_allclose(masks.read_weight(name, (12, 17)) / 65535, expected, atol=1e-6)
        assert not masks.read_weight("elsewhere", (2, 3)).any()
        assert masks.to_dict()["weight"] == score


@pytest.mark.parametrize("weight", ["entropy", "masks", "doubt_maps/first"])
def test_only_a_score_of_the_mask_is_a_weight(weight: str) -> None:
    with pytest.raises(UserError, match="holds confidence, doubt, margin"):
        PseudoMasks(StoreReader(make.STORE), weight=weight)


def test_filters_on_any_score_are_applied() -> None:
    store = StoreReader(make.STORE)
    name = store.ids[1]
    mask = PseudoMasks(store, resolve(["doubt<=q50", "margin>0.2"], store)).read(name, (12, 17))
    (limit,) = resolve(["doubt<=q50"], store)
    kept = (store.score("doubt", name) <= np.float32(limit.threshold)) & (store.score("margin", name) > np.float32(0.2))
    np.testing.assert_array_equal(mask, np.where(kept, store.mask(name), 255))
    assert 0 < kept.mean() < 0.5
