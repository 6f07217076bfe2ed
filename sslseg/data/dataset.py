"""Datasets over the ids of a split, and the loaders that training and inference take their batches from."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.device import get_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sslseg.data.description import DatasetDescription, Sample
from sslseg.data.labels import ignore_value
from sslseg.data.pseudo_masks import PseudoMasks
from sslseg.data.reading import label_table
from sslseg.data.sampler import MixedSampler, StreamIndex
from sslseg.data.transforms import LoadSample, MultiView, PadToCrop, pack

Views = dict[str, Sequence[dict[str, Any]]]


def seed_everything(*entropy: int) -> None:
    """Seed Python, NumPy and torch from non-negative integers."""
    words = np.random.SeedSequence(entropy).generate_state(2)
    random.seed(int(words[0]))
    np.random.seed(int(words[0]))
    # torch.manual_seed would also queue seeds for every kind of device that is not in use, with a stack trace for each.
    torch.default_generator.manual_seed(int(words[1]))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(int(words[1]))


def source(sample: Sample, *, labeled: bool) -> dict[str, Any]:
    """Return the input of a transform pipeline; it does not even name the mask of an unlabeled sample."""
    return dict(img_path=sample.image, seg_map_path=sample.mask if labeled else None, sample_id=sample.id)


class StreamDataset(Dataset):
    """The streams that a method reads (``labeled``, ``unlabeled``, or ``train``: both), as cropped and augmented views.

    The order is: load image and mask (``labeled`` only) or valid map, then the stored pseudo-mask, where there is one;
    scale, rotation, crop, flip, pad to the crop, each with the same random numbers for the image and its maps;
    then one copy per view, each with the transforms of its view in the config (``views.weak``, ``views.strong``).

    The position in the stream seeds the augmentation, so batches do not depend on the number of workers, and a resumed
    run gets the batches of an uninterrupted one.
    """

    def __init__(
        self,
        streams: dict[str, list[Sample]],
        *,
        description: DatasetDescription,
        views: dict[str, Views],
        crop: tuple[int, int],
        scale: tuple[float, float],
        flip: float,
        image_mean: Sequence[float],
        seed: int,
        rotation: float = 0.0,
        cat_max_ratio: float = 1.0,
        pseudo_masks: PseudoMasks | None = None,
    ) -> None:
        ignore_index = ignore_value(description.num_classes)
        self.load = LoadSample(label_table(description))
        self.geometry = {
            # A crop that one class fills is sampled again, which needs labels.
            name: Compose(
                [
                    dict(type="RandomScale", factors=scale),
                    *([dict(type="RandomRotation", degrees=rotation)] if rotation else []),
                    dict(
                        type="RandomCrop",
                        crop_size=crop,
                        cat_max_ratio=cat_max_ratio if name == "labeled" else 1.0,
                        ignore_index=ignore_index,
                    ),
                    dict(type="RandomFlip", prob=flip),
                ]
            )
            for name in streams
        }
        self.pad = PadToCrop(crop)
        # A valid map is 0 on pixels of the image and 255 elsewhere, one byte per pixel whatever the number of classes.
        maps = dict(gt_seg_map=ignore_index, pseudo_map=ignore_index, valid_map=np.iinfo(np.uint8).max, weight_map=0)
        self.fill = dict(img=tuple(image_mean), **maps)
        self.pseudo_masks = pseudo_masks
        self.names = list(streams)
        self.samples = list(streams.values())
        self.views = [MultiView(name, views[name]) for name in self.names]
        self.seed = seed

    def __len__(self) -> int:
        return sum(map(len, self.samples))

    def __getitem__(self, index: StreamIndex) -> dict[str, dict[str, Tensor]]:
        seed_everything(self.seed, index.stream, index.position)
        name = self.names[index.stream]
        sample = source(self.samples[index.stream][index.sample], labeled=name == "labeled")
        results = self.load(dict(sample, fill=self.fill))
        if self.pseudo_masks is not None:
            results = self.pseudo_masks(results)
        views = self.views[index.stream](self.pad(self.geometry[name](results)))
        for view in views.values():
            view["index"] = torch.tensor(index.sample)
        return views


class ImageDataset(Dataset):
    """Whole images in the order of ``samples``, with their masks where ``labeled``."""

    def __init__(self, samples: Sequence[Sample], *, description: DatasetDescription, labeled: bool) -> None:
        self.samples, self.labeled = samples, labeled
        self.load = LoadSample(label_table(description))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = source(self.samples[index], labeled=self.labeled)
        return pack(self.load(sample))


def collate_views(batch: list[dict[str, dict[str, Tensor]]]) -> dict[str, dict[str, Tensor]]:
    """Stack the views of all samples into ``{view: {key: N x ...}}``, so that few tensors are copied to the GPU."""
    views: dict[str, list[dict[str, Tensor]]] = {}
    for sample in batch:
        for view, tensors in sample.items():
            views.setdefault(view, []).append(tensors)
    return {
        view: {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
        for view, samples in sorted(views.items())
    }


def collate_list(batch: list[Any]) -> list[Any]:
    return batch


def train_loader(
    dataset: StreamDataset,
    counts: Sequence[int],
    *,
    seed: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Return an endless loader of batches for this rank, with ``counts[s]`` samples of each stream s."""
    sizes = [len(samples) for samples in dataset.samples]
    sampler = MixedSampler(sizes, counts, seed=seed, rank=rank, world_size=world_size)
    return DataLoader(
        dataset,
        batch_size=sum(counts),
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate_views,
        worker_init_fn=prepare_train_worker,
        persistent_workers=workers > 0,
        pin_memory=get_device() == "cuda",
    )


class FixedBatches(Sampler[list[int]]):
    """Give batch k of the whole list to rank k modulo the number of ranks.

    Which images share a batch does not depend on the number of ranks, so predictions are equal to the last bit.
    """

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        starts = range(rank * batch_size, size, batch_size * world_size)
        self.batches = [list(range(start, min(start + batch_size, size))) for start in starts]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def image_loader(dataset: Dataset, batches: Sampler[list[int]] | Sequence[list[int]], *, workers: int) -> DataLoader:
    """Return a loader of lists of packed images, one list for each batch of indices."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate_list,
        worker_init_fn=prepare_worker,
    )


def prepare_worker(worker_id: int) -> None:
    """Limit OpenCV to one thread in a worker of a loader, and leave Ctrl-C, which reaches workers too, to the main process."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def prepare_train_worker(worker_id: int) -> None:
    """Leave SIGTERM to the main process as well: without workers it could not finish the iteration that it saves."""
    prepare_worker(worker_id)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
