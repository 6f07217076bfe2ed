"""Streams, views and draws: what the loader gives, and that it does not depend on how it is run."""

from __future__ import annotations

from itertools import islice

import cv2
import numpy as np
import pytest
import torch

from sslseg.data.dataset import FixedBatches, StreamDataset, seed_everything, train_loader
from sslseg.data.sampler import MixedSampler
from sslseg.registry import import_mmseg
from sslseg.split import Split

SHARED = [dict(type="PhotoMetricDistortion")]
STRONG = [*SHARED, dict(type="RandomBlur"), dict(type="RandomGray", prob=0.5)]


@pytest.fixture
def streams(toy_split: Split) -> StreamDataset:
    import_mmseg()
    return StreamDataset(
        {name: toy_split.samples(name) for name in ("labeled", "unlabeled")},
        description=toy_split.dataset,
        views=dict(labeled=dict(weak=SHARED), unlabeled=dict(weak=[], strong=STRONG)),
        crop=(48, 56),
        scale=(0.4, 1.6),
        flip=0.5,
        image_mean=(104.0, 116.0, 124.0),
        seed=5,
    )


def batches(dataset: StreamDataset, count: int, *, workers: int = 0, skip: int = 0) -> list[dict]:
    loader = train_loader(dataset, [2, 3], seed=5, workers=workers)
    loader.sampler.skip(skip * 5)
    return list(islice(loader, count))


def test_batches_have_a_branch_for_each_view(streams: StreamDataset) -> None:
    batch = batches(streams, 1)[0]
    assert {name: len(branch["inputs"]) for name, branch in batch.items()} == dict(
        labeled_weak=2, unlabeled_strong=3, unlabeled_weak=3
    )
    for branch in batch.values():
        assert all(image.shape == (3, 48, 56) and image.dtype == torch.uint8 for image in branch["inputs"])
    assert all("gt_sem_seg" in sample for sample in batch["labeled_weak"]["data_samples"])
    assert not any("gt_sem_seg" in sample for sample in batch["unlabeled_weak"]["data_samples"])


def test_views_of_a_sample_are_pixel_aligned(streams: StreamDataset) -> None:
    """Photometric operations keep edges where they are: the strong view correlates with the weak one, unshifted."""
    for batch in batches(streams, 4):
        pairs = zip(batch["unlabeled_weak"]["inputs"], batch["unlabeled_strong"]["inputs"], strict=True)
        for weak, strong in pairs:
            a, b = (cv2.Canny(view.numpy().mean(0).astype(np.uint8), 60, 120) > 0 for view in (weak, strong))
            shifts = {shift: (a & np.roll(b, shift, axis=1)).sum() for shift in (0, 5, 9)}
            assert shifts[0] >= max(shifts.values())
        for left, right in zip(*(batch[f"unlabeled_{v}"]["data_samples"] for v in ("weak", "strong")), strict=True):
            assert left.sample_id == right.sample_id
            assert torch.equal(left.valid_map.data, right.valid_map.data)


def test_padding_is_known_on_both_streams(streams: StreamDataset) -> None:
    mean = torch.tensor([104, 116, 124], dtype=torch.uint8).view(3, 1, 1)
    seen = 0
    for batch in batches(streams, 12):
        for image, sample in zip(*batch["unlabeled_weak"].values(), strict=True):
            outside = ~sample.valid_map.data[0]
            assert (image == mean).all(0)[outside].all()
            seen += int(outside.sum())
        for sample in batch["labeled_weak"]["data_samples"]:
            assert set(sample.gt_sem_seg.data.unique().tolist()) <= {*range(7), 255}
    assert seen > 0


def equal(left: dict, right: dict) -> bool:
    return all(
        torch.equal(a, b) for name in left for a, b in zip(left[name]["inputs"], right[name]["inputs"], strict=True)
    )


def test_batches_depend_on_the_seed_alone(streams: StreamDataset) -> None:
    first = batches(streams, 4)
    seed_everything(99)  # whatever happened before
    assert all(map(equal, first, batches(streams, 4, workers=2)))
    assert equal(first[3], batches(streams, 1, skip=3)[0])
    assert not equal(first[0], first[1])
    streams.seed = 6
    assert not equal(first[0], batches(streams, 1)[0])


def test_sampler_takes_every_image_once_an_epoch() -> None:
    draws = list(islice(MixedSampler([6, 10], [2, 5], seed=0), 7 * 6))
    labeled = [draw.sample for draw in draws if draw.stream == 0]
    unlabeled = [draw.sample for draw in draws if draw.stream == 1]
    assert sorted(labeled[:6]) == list(range(6)) == sorted(labeled[6:12])
    assert sorted(unlabeled[:10]) == list(range(10))
    assert labeled[:6] != labeled[6:12]
    assert [draw.stream for draw in draws[:7]] == [0, 0, 1, 1, 1, 1, 1]


def test_ranks_share_what_one_process_draws() -> None:
    one = list(islice(MixedSampler([9, 13], [4, 2], seed=1), 6 * 5))
    ranks = [list(islice(MixedSampler([9, 13], [2, 1], seed=1, rank=r, world_size=2), 3 * 5)) for r in (0, 1)]
    for step in range(5):
        together = [draw for rank in ranks for draw in rank[3 * step : 3 * step + 3]]
        assert sorted(together) == sorted(one[6 * step : 6 * step + 6])


def test_fixed_batches_do_not_depend_on_the_number_of_ranks() -> None:
    whole = list(FixedBatches(11, 3))
    assert whole == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
    parts = [list(FixedBatches(11, 3, rank=rank, world_size=3)) for rank in range(3)]
    assert sorted(batch for part in parts for batch in part) == whole
