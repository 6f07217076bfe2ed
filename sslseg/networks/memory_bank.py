"""A bounded first-in-first-out queue of feature vectors for each class, on the device that trains.

Wang et al., CVPR 2022, Sec. 3.3, "Category-wise Memory Bank"; sizes: Appendix A. All queues lie in one tensor, each a ring.
It is part of the state of a run: resumed training goes on with the same keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.dist import all_gather, get_world_size
from torch import Tensor, nn

from sslseg.functional.contrast import draws


class MemoryBank(nn.Module):
    """Queues of vectors of length ``dim``.

    Args:
        sizes: how many each class's queue holds at most.
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
        """Forget all."""
        self.heads.zero_()
        self.counts.zero_()

    @torch.no_grad()
    def push(self, features: Tensor, belongs: Tensor) -> None:
        """Append each vector to the queues of the classes that it belongs to, in order; the oldest fall out.

        Every rank appends the vectors of all ranks, those of rank 0 first. The host learns once how many there are.

        **Shape**: P x D and P x C bool.
        """
        if get_world_size() > 1:
            features, belongs = gathered(features, belongs)
        numbers = belongs.cumsum(dim=0)
        totals = belongs.sum(dim=0)
        # What later vectors of the same push would overwrite is never written.
        rows, classes = (belongs & (numbers > totals - self.sizes)).nonzero(as_tuple=True)
        slots = (self.heads[classes] + numbers[rows, classes] - 1) % self.sizes[classes]
        self.keys[self.starts[classes] + slots] = features[rows].to(self.keys.dtype)
        self.heads.copy_((self.heads + totals) % self.sizes)
        self.counts.copy_((self.counts + totals).minimum(self.sizes))

    def sample(self, *shape: int) -> Tensor:
        """Draw vectors of each class, with replacement; of no meaning where a queue is empty.

        **Shape**: -> C x shape x D.
        """
        slots = draws(self.counts, *shape) + self.starts.reshape(-1, *[1] * len(shape))
        return self.keys[slots]

    def queue(self, index: int) -> Tensor:
        """Return one class's vectors, the oldest first.

        **Shape**: -> count x D.
        """
        size, count, head = int(self.sizes[index]), int(self.counts[index]), int(self.heads[index])
        slots = (torch.arange(head - count, head, device=self.keys.device)) % size
        return self.keys[self.starts[index] + slots]


def gathered(features: Tensor, belongs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the vectors of all ranks that belong to any class, in the order of the ranks.

    **Shape**: P x D and P x C bool -> the same, of another P.
    """
    rows = belongs.any(dim=1).nonzero()[:, 0]
    features, belongs = features[rows], belongs[rows]
    numbers = [int(number) for number in torch.cat(all_gather(torch.tensor([len(rows)], device=rows.device))).tolist()]
    padding = (0, 0, 0, max(numbers) - len(rows))  # ranks exchange tensors of one shape
    every = all_gather(nn.functional.pad(features, padding)), all_gather(nn.functional.pad(belongs.byte(), padding))
    parts = [torch.cat([part[:number] for part, number in zip(one, numbers, strict=True)]) for one in every]
    return parts[0], parts[1].bool()
