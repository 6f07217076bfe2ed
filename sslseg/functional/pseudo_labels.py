"""Hard pseudo-labels with their confidence, as FixMatch and its successors learn from them."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from sslseg.functional.mixing import paste


class PseudoLabels(NamedTuple):
    """What a prediction says of each pixel.

    **Shape**: classes N x H x W int64; confidence N x H x W in [0, 1]; valid N x H x W bool, False outside the image.
    """

    classes: Tensor
    confidence: Tensor
    valid: Tensor

    @classmethod
    def of(cls, probabilities: Tensor, valid: Tensor) -> PseudoLabels:
        """**Shape**: N x C x H x W and N x H x W bool."""
        confidence, classes = probabilities.max(dim=1)
        return cls(classes, confidence, valid)

    def pasted(self, kept: Tensor) -> PseudoLabels:
        """Mix them as ``paste`` mixes the images.

        **Shape**: kept N x 1 x H x W bool.
        """
        return PseudoLabels(*(paste(values[:, None], kept)[:, 0] for values in self))

    def accepted(self, threshold: float) -> Tensor:
        """Return the pixels of the image whose confidence reaches the threshold, N x H x W bool."""
        return self.valid & (self.confidence >= threshold)


def accepted_cross_entropy(logits: Tensor, labels: PseudoLabels, threshold: float) -> Tensor:
    """Return the sum of the accepted pixels' cross entropy, divided by the number of all valid ones: it grows as more are accepted.

    **Shape**: logits N x C x H x W -> scalar; 0 if no pixel is valid.
    """
    losses = F.cross_entropy(logits.float(), labels.classes, reduction="none")
    return (losses * labels.accepted(threshold)).sum() / labels.valid.sum().clamp_min(1)
