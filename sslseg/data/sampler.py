"""One sampler for labelled and unlabelled images: n + m a batch, every rank its own share, resumable at any step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """Number ``sample`` of ``stream``, and the position of this draw in the stream, which seeds its augmentation."""

    stream: int
    sample: int
    position: int


class MixedSampler(Sampler[Draw]):
    """Draw ``counts[s]`` samples of each stream s for every batch of this rank, without end.

    A stream is a sequence of permutations of its samples, fixed by the seed alone; ranks take turns on it. So two
    ranks of batch n see what one process of batch 2n sees, in the same step, and a resumed run goes on where it was.

    Args:
        sizes: number of samples of each stream.
        counts: samples of each stream in a rank's batch.
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
        """Start after the ``num_samples`` that this rank has drawn before; called by mmengine's loop on resume."""
        self.first_batch = num_samples // sum(self.counts)

    def __iter__(self) -> Iterator[Draw]:
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
                    yield Draw(stream, int(permutations[stream][1][offset]), position)
            batch += 1
