"""One sampler for labeled and unlabeled images: n + m per batch, split between ranks, resumable at any iteration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class StreamIndex(NamedTuple):
    """Sample number ``sample`` of a stream, and its position in the endless stream, which seeds its augmentation."""

    stream: int
    sample: int
    position: int


class MixedSampler(Sampler[StreamIndex]):
    """Yield ``counts[s]`` samples of each stream s for every batch of this rank, without end.

    A stream is a sequence of random permutations of its samples, which depends on the seed alone; the ranks divide it.
    So two ranks of batch n see what one process of batch 2n sees in the same iteration, and a resumed run continues it.

    Args:
        sizes: number of samples of each stream.
        counts: samples of each stream in the batch of one rank.
    """

    def __init__(
        self, sizes: Sequence[int], counts: Sequence[int], *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.sizes, self.counts = tuple(sizes), tuple(counts)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.first_batch = 0

    def __len__(self) -> int:
        return sum(self.sizes)

    def skip(self, num_samples: int) -> None:
        """Start after the first ``num_samples`` of this rank; called by mmengine's loop on resume."""
        self.first_batch = num_samples // sum(self.counts)

    def __iter__(self) -> Iterator[StreamIndex]:
        permutations: dict[int, tuple[int, np.ndarray]] = {}
        batch = self.first_batch
        while True:
            for stream, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
                start = (batch * self.world_size + self.rank) * count
                for position in range(start, start + count):
                    epoch, offset = divmod(position, size)
                    if permutations.get(stream, (-1,))[0] != epoch:
                        generator = np.random.default_rng([self.seed, stream, epoch])
                        permutations[stream] = (epoch, generator.permutation(size))
                    yield StreamIndex(stream, int(permutations[stream][1][offset]), position)
            batch += 1
