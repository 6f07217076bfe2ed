"""The contrastive loss L_c of U2PL, and its binary alternative L_b.

Wang et al., CVPR 2022, Eqs. (4), (12) and (A1), Algorithm 1, Appendix C.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor, nn

from sslseg.functional.consistency import mean
from sslseg.methods.u2pl.memory_bank import MemoryBank, random_indices
from sslseg.methods.u2pl.partition import one_hot
from sslseg.settings import checked


def sample_anchors(classes: Tensor, number: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sample ``number`` anchors of each class, with replacement, and count the candidates.

    **Shape**: P int64 in [0, C] -> C x M pixel indices (meaningless for a class without candidates) and C.
    """
    order = classes.argsort(stable=True)
    counts = classes.new_zeros(num_classes + 1).scatter_add_(0, classes, torch.ones_like(classes))[:num_classes]
    starts = counts.cumsum(0) - counts
    return order[(starts[:, None] + random_indices(counts, number)).clamp_max_(len(classes) - 1)], counts


def centers(features: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the numerator and the denominator of Eq. (12): the sum of each class's features, and their number.

    **Shape**: P x D and P int64 -> C x D and C.
    """
    members = one_hot(classes, num_classes).to(features.dtype)
    return members.mT @ features, members.sum(dim=0)


def similarities(anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return <z, z+> / tau and <z, z-> / tau.

    **Shape**: C x M x D, C x D and C x M x N x D, all of length 1 along D -> C x M x 1 and C x M x N.
    """
    positive = anchors @ positives[:, :, None] / temperature
    negative = (negatives @ anchors[..., None])[..., 0] / temperature
    return positive, negative


def info_nce(anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return each anchor's term of L_c.

    **Shape**: that of ``similarities`` -> C x M.
    """
    positive, negative = similarities(anchors, positives, negatives, temperature)
    return torch.cat((positive, negative), dim=2).logsumexp(dim=2) - positive[..., 0]  # Eq. (4)


def binary(anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return each anchor's term of L_b: as ``info_nce``, but with one negative at a time.

    **Shape**: that of ``similarities`` -> C x M.
    """
    positive, negative = similarities(anchors, positives, negatives, temperature)
    return F.softplus(negative - positive).mean(dim=2)  # Eq. (A1)


LOSSES = {"infonce": info_nce, "bce": binary}


class Contrast(nn.Module):
    """Pull the anchors of each class to its center, and push them away from its negatives."""

    @checked("method.contrast")
    def __init__(
        self,
        num_classes: int,
        *,
        dim: Annotated[int, "Length of the compared vectors."] = 256,
        loss: Annotated[Literal["infonce", "bce"], "L_c, Eq. (4), or L_b, Eq. (A1)."] = "infonce",
        anchors: Annotated[int, "M: anchors of each class."] = 50,
        negatives: Annotated[int, "N: negatives of each anchor."] = 256,
        temperature: Annotated[float, "tau."] = 0.5,
        queue_size: Annotated[int, "Length of each class's queue."] = 30_000,
        background_queue_size: Annotated[
            int | None, "Length of the first class's queue; None: like the others."
        ] = 50_000,
        use_memory_bank: Annotated[bool, "False: only negatives of the same iteration (Table 6, no Q_c)."] = True,
    ) -> None:
        super().__init__()
        self.num_classes, self.dim, self.loss, self.use_memory_bank = num_classes, dim, LOSSES[loss], use_memory_bank
        self.anchors, self.negatives, self.temperature = anchors, negatives, temperature
        self.bank = MemoryBank([background_queue_size or queue_size, *[queue_size] * (num_classes - 1)], dim)

    def forward(self, vectors: Tensor, keys: Tensor, anchors: Tensor, negatives: Tensor) -> Tensor:
        """Return the loss of one iteration.

        Args:
            vectors: of the student, of length 1.
            keys: of the teacher, of any length: Eq. (12) averages them, and longer ones count more; the bank holds length 1.
            anchors: the class that each pixel is a candidate of, C for none.
            negatives: the classes that it is a negative of.

        **Shape**: P x D twice, P int64 and P x C bool -> scalar.
        """
        if not self.use_memory_bank:
            self.bank.clear()
        self.bank.push(F.normalize(keys, dim=1), negatives)
        indices, counts = sample_anchors(anchors, self.anchors, self.num_classes)
        with torch.autocast(vectors.device.type, enabled=False):  # half precision cannot count the pixels of a batch
            sums, members = centers(keys, anchors, self.num_classes)
            all_reduce(sums)
            all_reduce(members)
            positives = F.normalize(sums / members.clamp_min(1)[:, None], dim=1)  # Eq. (12)
            sampled = self.bank.sample(self.anchors, self.negatives)
            terms = self.loss(vectors[indices], positives, sampled, self.temperature)
        return mean(terms.mean(dim=1), (counts > 0) & (self.bank.counts > 0))
