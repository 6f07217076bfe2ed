"""Streams, views and sampling: the batches of the loader, which do not depend on workers, ranks or resuming."""

from __future__ import annotations

import itertools
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict

from sslseg.data.dataset import FixedBatches, StreamDataset, seed_everything, train_loader
from sslseg.data.description import DatasetDescription
from sslseg.data.pseudo_masks import PseudoMasks
from sslseg.data.reading import label_table, read_mask
from sslseg.data.sampler import MixedSampler, StreamIndex
from sslseg.data.transforms import RandomRotation
from sslseg.engine.build import transforms_of
from sslseg.errors import UserError
from sslseg.registry import register_modules
from sslseg.splits.split import Split
from sslseg.store import StoreHeader, StoreReader, StoreWriter

SHARED = [dict(type="PhotoMetricDistortion")]
STRONG = [*SHARED, dict(type="RandomBlur"), dict(type="RandomGray", prob=0.5)]


@pytest.fixture
def streams(toy_split: Split) -> StreamDataset:
    register_modules()
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


def test_batches_hold_every_view(streams: StreamDataset) -> None:
    batch = batches(streams, 1)[0]
    assert {name: len(view["inputs"]) for name, view in batch.items()} == dict(
        labeled_weak=2, unlabeled_strong=3, unlabeled_weak=3
    )
    for view in batch.values():
        assert view["inputs"].shape[1:] == (3, 48, 56)
        assert view["inputs"].dtype == torch.uint8
    assert set(batch["labeled_weak"]) == {"inputs", "labels", "index"}
    assert set(batch["unlabeled_weak"]) == {"inputs", "valid", "index"}


def test_views_name_the_place_of_their_image(streams: StreamDataset) -> None:
    views = streams[StreamIndex(1, 2, 9)]
    assert [int(view["index"]) for view in views.values()] == [2] * len(views)


def test_views_of_a_sample_are_pixel_aligned(streams: StreamDataset) -> None:
    """Photometric operations keep edges where they are: the strong view correlates with the weak one, unshifted."""
    for batch in batches(streams, 4):
        pairs = zip(batch["unlabeled_weak"]["inputs"], batch["unlabeled_strong"]["inputs"], strict=True)
        for weak, strong in pairs:
            a, b = (cv2.Canny(view.numpy().mean(0).astype(np.uint8), 60, 120) > 0 for view in (weak, strong))
            shifts = {shift: (a & np.roll(b, shift, axis=1)).sum() for shift in (0, 5, 9)}
            assert shifts[0] >= max(shifts.values())
        assert torch.equal(batch["unlabeled_weak"]["valid"], batch["unlabeled_strong"]["valid"])


def test_padding_is_invalid_on_both_streams(streams: StreamDataset) -> None:
    mean = torch.tensor([104, 116, 124], dtype=torch.uint8).view(3, 1, 1)
    seen = 0
    for batch in batches(streams, 12):
        weak = batch["unlabeled_weak"]
        outside = ~weak["valid"]
        assert (weak["inputs"] == mean).all(1)[outside].all()
        seen += int(outside.sum())
        assert set(batch["labeled_weak"]["labels"].unique().tolist()) <= {*range(7), 255}
    assert seen > 0


def test_rotation_moves_images_with_their_maps() -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 50:70] = 1
    valid = np.zeros_like(mask)
    fill = dict(img=(9.0, 9.0, 9.0), gt_seg_map=255, valid_map=255)
    angles = []
    for seed in range(20):
        seed_everything(seed)
        image = np.repeat(100 + 100 * mask[..., None], 3, axis=2)
        results = dict(img=image, gt_seg_map=mask, valid_map=valid, seg_fields=["gt_seg_map", "valid_map"], fill=fill)
        results = RandomRotation(10.0)(results)
        outside = results["valid_map"] == 255
        assert np.array_equal(outside, results["gt_seg_map"] == 255)
        box = cv2.erode((results["gt_seg_map"] == 1).astype(np.uint8), np.ones((3, 3))) > 0
        assert (results["img"][box] == 200).all()
        assert (results["img"][20:40, 10:30] == 100).all()
        assert (results["img"][cv2.erode(outside.astype(np.uint8), np.ones((5, 5))) > 0] == 9).all()
        # The center of the box, (10, 20) from that of the image, rotates by the sampled angle.
        rows, columns = np.nonzero(results["gt_seg_map"] == 1)
        angles.append(np.degrees(np.arctan2(29.5 - rows.mean(), columns.mean() - 39.5)))
    assert -10.5 < min(angles) < -5
    assert 5 < max(angles) < 10.5


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
    indices = list(islice(MixedSampler([6, 10], [2, 5], seed=0), 7 * 6))
    labeled = [index.sample for index in indices if index.stream == 0]
    unlabeled = [index.sample for index in indices if index.stream == 1]
    assert sorted(labeled[:6]) == list(range(6)) == sorted(labeled[6:12])
    assert sorted(unlabeled[:10]) == list(range(10))
    assert labeled[:6] != labeled[6:12]
    assert [index.stream for index in indices[:7]] == [0, 0, 1, 1, 1, 1, 1]


def test_ranks_divide_what_one_process_samples() -> None:
    one = list(islice(MixedSampler([9, 13], [4, 2], seed=1), 6 * 5))
    ranks = [list(islice(MixedSampler([9, 13], [2, 1], seed=1, rank=r, world_size=2), 3 * 5)) for r in (0, 1)]
    for batch in range(5):
        together = [index for rank in ranks for index in rank[3 * batch : 3 * batch + 3]]
        assert sorted(together) == sorted(one[6 * batch : 6 * batch + 6])


def test_fixed_batches_do_not_depend_on_the_number_of_ranks() -> None:
    whole = list(FixedBatches(11, 3))
    assert whole == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
    parts = [list(FixedBatches(11, 3, rank=rank, world_size=3)) for rank in range(3)]
    assert sorted(batch for part in parts for batch in part) == whole


def test_stored_masks_follow_their_images(streams: StreamDataset, toy_split: Split, tmp_path: Path) -> None:
    """Stored ground truth equals the labels in every crop, scale and flip; images that are not stored are ignored."""
    samples = toy_split.samples("train")
    header = StoreHeader(toy_split.dataset.classes, toy_split.dataset.palette, 255, len(samples) - 1)
    with StoreWriter(tmp_path / "s.h5", header=header, ids=[sample.id for sample in samples[1:]]) as writer:
        for sample in samples[1:]:
            writer.add(sample.id, mask=read_mask(str(sample.mask), label_table(toy_split.dataset)))
    streams.pseudo_masks = PseudoMasks(StoreReader(writer.finalize()))
    ignored = 0
    for batch in batches(streams, 8):
        labeled = batch["labeled_weak"]
        stored = torch.stack([(mask != 255).any() for mask in labeled["pseudo_masks"]])
        assert torch.equal(labeled["labels"][stored], labeled["pseudo_masks"][stored])
        ignored += int((~stored).sum())
        assert torch.equal(batch["unlabeled_weak"]["pseudo_masks"] != 255, batch["unlabeled_weak"]["valid"])
    assert 0 < ignored < 16


def test_a_stored_mask_of_another_size_is_refused(toy_split: Split, tmp_path: Path) -> None:
    header = StoreHeader(toy_split.dataset.classes, toy_split.dataset.palette, 255, 1)
    with StoreWriter(tmp_path / "s.h5", header=header, ids=["a"]) as writer:
        writer.add("a", mask=np.zeros((4, 5), np.uint8))
    masks = PseudoMasks(StoreReader(writer.finalize()))
    with pytest.raises(UserError, match="'a' is 4x5, its image 5x5"):
        masks.read("a", (5, 5))


def test_a_labeled_crop_that_one_class_fills_is_sampled_again(toy: DatasetDescription, toy_split: Split) -> None:
    """With a limit of 0.5 fewer crops are nearly all background; unlabeled crops have no limit."""

    def filled(limit: float) -> float:
        register_modules()
        dataset = StreamDataset(
            dict(labeled=toy_split.samples("labeled")),
            description=toy,
            views=dict(labeled=dict(weak=[])),
            crop=(24, 24),
            scale=(1.0, 1.0),
            flip=0.0,
            image_mean=(0, 0, 0),
            seed=0,
            cat_max_ratio=limit,
        )
        crops = [dataset[StreamIndex(0, position % 4, position)]["labeled_weak"]["labels"] for position in range(60)]
        return float(np.mean([np.bincount(crop.numpy().ravel()).max() > 0.5 * crop.numel() for crop in crops]))

    assert filled(0.5) < 0.5 * filled(1.0)


def test_a_second_view_of_a_name_is_drawn_from_the_same_transforms() -> None:
    config = ConfigDict(views=dict(weak=[], strong=STRONG, strong_3=SHARED))
    assert transforms_of("strong", config) == transforms_of("strong_2", config) == STRONG
    assert transforms_of("strong_3", config) == SHARED


def test_two_strong_views_of_one_image_differ(toy_split: Split) -> None:
    register_modules()
    dataset = StreamDataset(
        {"unlabeled": toy_split.samples("unlabeled")},
        description=toy_split.dataset,
        views=dict(unlabeled=dict(weak=[], strong=STRONG, strong_2=STRONG)),
        crop=(48, 48),
        scale=(1.0, 1.0),
        flip=0.5,
        image_mean=(104.0, 116.0, 124.0),
        seed=5,
    )
    views = dataset[StreamIndex(0, 2, 9)]
    images = [views[f"unlabeled_{name}"]["inputs"] for name in ("weak", "strong", "strong_2")]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(images, 2))
