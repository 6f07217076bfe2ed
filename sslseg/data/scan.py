"""Checking every file of a split before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from sslseg.data.description import DatasetDescription, Sample
from sslseg.data.reading import label_table, read_image, read_mask
from sslseg.errors import UserError
from sslseg.progress import track


@dataclass(frozen=True)
class Scan:
    """The content of a subset; ``pixels`` is images x classes, with a row of zeros where no mask was read."""

    name: str
    images: int
    pixels: np.ndarray

    @property
    def frequencies(self) -> np.ndarray:
        """Fraction of the labeled pixels that each class has."""
        return self.pixels.sum(axis=0) / max(self.pixels.sum(), 1)

    @property
    def occurrences(self) -> np.ndarray:
        """Number of images that hold each class."""
        return (self.pixels > 0).sum(axis=0)


def scan(
    subsets: Mapping[str, Sequence[Sample]], description: DatasetDescription, *, masks: Sequence[str], workers: int
) -> list[Scan]:
    """Check in parallel that every image opens and, in the subsets named in ``masks``, that its mask exists and fits.

    The masks of the other subsets are not read.

    Raises:
        UserError: naming the first file with a problem and how many there are.
    """
    table = label_table(description)
    jobs = [(subset, sample) for subset, samples in subsets.items() for sample in samples]

    def check(job: tuple[str, Sample]) -> np.ndarray | UserError:
        subset, sample = job
        try:
            return _check(sample, table, description, with_mask=subset in masks)
        except UserError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        results = list(track(pool.map(check, jobs), "scan", total=len(jobs)))
    problems = [result for result in results if isinstance(result, UserError)]
    if problems:
        more = f" (and {len(problems) - 1} more such files of {len(jobs)})" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")
    scans, start = [], 0
    for subset, samples in subsets.items():
        rows = [result for result in results[start : start + len(samples)] if isinstance(result, np.ndarray)]
        start += len(samples)
        scans.append(Scan(subset, len(samples), np.array(rows, np.int64).reshape(len(rows), description.num_classes)))
    return scans


def histograms(samples: Sequence[Sample], description: DatasetDescription, *, workers: int) -> np.ndarray:
    """Return the number of pixels of each class in the mask of each sample, images x classes."""
    table = label_table(description)

    def count(sample: Sample) -> np.ndarray:
        return _histogram(read_mask(str(sample.mask), table), description.num_classes)

    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        return np.array(list(track(pool.map(count, samples), "read masks", total=len(samples))))


def _histogram(mask: np.ndarray, num_classes: int) -> np.ndarray:
    return np.bincount(mask.ravel(), minlength=num_classes)[:num_classes]


def _check(sample: Sample, table: np.ndarray, description: DatasetDescription, *, with_mask: bool) -> np.ndarray:
    image = read_image(sample.image)
    if not with_mask:
        return np.zeros(description.num_classes, np.int64)
    if sample.mask is None:
        raise UserError(
            f"image {sample.image} has no mask but is labeled; add the mask or leave {sample.id!r} out of the list"
        )
    mask = read_mask(sample.mask, table)
    if mask.shape != image.shape[:2]:
        raise UserError(
            f"mask {sample.mask} is {mask.shape[1]}x{mask.shape[0]}, its image {image.shape[1]}x{image.shape[0]}; resize one of them"
        )
    return _histogram(mask, description.num_classes)
