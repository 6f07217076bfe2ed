"""Pixel-wise contrast between classes, with a memory of negatives: the loss of U2PL, and its binary alternative.

Wang et al., CVPR 2022, Eqs. (4), (12) and (A1), Algorithm 1, Appendix C.
"""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn
from torch.nn.functional import normalize

from sslseg.errors import UserError
from sslseg.functional.consistency import mean
from sslseg.functional.contrast import binary, centers, info_nce, sample_anchors
from sslseg.networks.memory_bank import MemoryBank

LOSSES = {"infonce": info_nce, "bce": binary}


class Contrast(nn.Module):
    """Draw anchors of each class to the class's centre, and away from what is not of the class.

    Args:
        dim: length of the vectors.
        loss: ``infonce``, Eq. (4), or ``bce``, Eq. (A1).
        anchors, negatives: M and N.
        temperature: tau.
        size, background: of the queues; the first class's is ``background``, where given.
        remember: False: only the negatives of the same step (Table 6, no Q_c).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        dim: int,
        loss: str,
        anchors: int,
        negatives: int,
        temperature: float,
        size: int,
        background: int | None,
        remember: bool,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise UserError(f"method.contrast.loss {loss!r} is unknown; use one of: {', '.join(LOSSES)}")
        self.num_classes, self.dim, self.loss, self.remember = num_classes, dim, LOSSES[loss], remember
        self.anchors, self.negatives, self.temperature = anchors, negatives, temperature
        self.bank = MemoryBank([background or size, *[size] * (num_classes - 1)], dim)

    def forward(self, vectors: Tensor, keys: Tensor, anchors: Tensor, negative: Tensor) -> Tensor:
        """Return the loss of one step.

        Args:
            vectors: the student's, of length 1.
            keys: the teacher's.
            anchors: the class of which each pixel is a candidate, C for none.
            negative: the classes of which it is a negative.

        **Shape**: P x D twice, P int64 and P x C bool -> scalar.
        """
        if not self.remember:
            self.bank.clear()
        self.bank.push(keys, negative)
        chosen, counts = sample_anchors(anchors, self.anchors, self.num_classes)
        with torch.autocast(vectors.device.type, enabled=False):  # half precision cannot count the pixels of a batch
            sums, members = centers(keys, anchors, self.num_classes)  # Eq. (12)
            all_reduce(sums)
            all_reduce(members)
            positives = normalize(sums / members.clamp_min(1)[:, None], dim=1)
            drawn = self.bank.sample(self.anchors, self.negatives)
            terms = self.loss(vectors[chosen], positives, drawn, self.temperature)
        return mean(terms.mean(dim=1), (counts > 0) & (self.bank.counts > 0))
