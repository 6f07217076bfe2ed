"""Q_c: a bounded first-in-first-out queue of feature vectors for each class, on the training device.

Wang et al., CVPR 2022, Sec. 3.3, "Category-wise Memory Bank"; sizes: Appendix A. All queues lie in one tensor, each as
a ring buffer. They are part of the checkpoint: a resumed run continues with the same keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.dist import all_gather, get_world_size
from torch import Tensor, nn


def random_indices(counts: Tensor, *shape: int) -> Tensor:
    """Sample integers below each class's count, 0 where it is 0.

    **Shape**: C -> C x shape int64.
    """
    limits = counts.reshape(-1, *[1] * len(shape))
    uniform = torch.rand(len(counts), *shape, device=counts.device)
    return (uniform * limits).long().minimum(limits - 1).clamp_min_(0)


class MemoryBank(nn.Module):
    """Queues of vectors of length ``dim``.

    Args:
        sizes: the capacity of each class's queue.
    """

    keys: Tensor
    heads: Tensor  # C: the slot, within the queue, that is written next
    counts: Tensor  # C: how many slots are filled
    sizes: Tensor
    starts: Tensor

    def __init__(self, sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(sum(sizes), dim))
        self.register_buffer("heads", torch.zeros(len(sizes), dtype=torch.long))
        self.register_buffer("counts", torch.zeros(len(sizes), dtype=torch.long))
        self.register_buffer("sizes", torch.tensor(sizes), persistent=False)
        self.register_buffer("starts", self.sizes.cumsum(0) - self.sizes, persistent=False)

    @property
    def bytes(self) -> int:
        """Return how much memory the queues take, filled or not."""
        return self.keys.numel() * self.keys.element_size()

    def clear(self) -> None:
        """Empty all queues."""
        self.heads.zero_()
        self.counts.zero_()

    @torch.no_grad()
    def push(self, features: Tensor, negatives: Tensor) -> None:
        """Append each vector, in order, to the queues of the classes that it is a negative of; the oldest fall out.

        Every process appends the vectors of all processes in the same order. This synchronizes once: their number is
        needed.

        **Shape**: P x D and P x C bool.
        """
        if get_world_size() > 1:
            features, negatives = gather(features, negatives)
        numbers = negatives.cumsum(dim=0)
        totals = negatives.sum(dim=0)
        # Skip what later vectors of the same push would overwrite.
        rows, classes = (negatives & (numbers > totals - self.sizes)).nonzero(as_tuple=True)
        slots = (self.heads[classes] + numbers[rows, classes] - 1) % self.sizes[classes]
        self.keys[self.starts[classes] + slots] = features[rows].to(self.keys.dtype)
        self.heads.copy_((self.heads + totals) % self.sizes)
        self.counts.copy_((self.counts + totals).minimum(self.sizes))

    def sample(self, *shape: int) -> Tensor:
        """Sample vectors of each class, with replacement; meaningless where a queue is empty.

        **Shape**: -> C x shape x D.
        """
        slots = random_indices(self.counts, *shape) + self.starts.reshape(-1, *[1] * len(shape))
        return self.keys[slots]

    def queue(self, index: int) -> Tensor:
        """Return the vectors of one class, the oldest first.

        **Shape**: -> count x D.
        """
        size, count, head = int(self.sizes[index]), int(self.counts[index]), int(self.heads[index])
        slots = (torch.arange(head - count, head, device=self.keys.device)) % size
        return self.keys[self.starts[index] + slots]


def gather(features: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Return the vectors of all processes that are a negative of any class, in the order of the processes.

    **Shape**: P x D and P x C bool -> the same, of another P.
    """
    rows = negatives.any(dim=1).nonzero()[:, 0]
    features, negatives = features[rows], negatives[rows]
    numbers = [int(number) for number in torch.cat(all_gather(torch.tensor([len(rows)], device=rows.device))).tolist()]
    padding = (0, 0, 0, max(numbers) - len(rows))  # processes exchange tensors of one shape
    every = all_gather(nn.functional.pad(features, padding)), all_gather(nn.functional.pad(negatives.byte(), padding))
    parts = [torch.cat([part[:number] for part, number in zip(one, numbers, strict=True)]) for one in every]
    return parts[0], parts[1].bool()
