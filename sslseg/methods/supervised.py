"""The supervised baseline: the segmentor's own loss on the labelled images, nothing else."""

from __future__ import annotations

from torch import Tensor

from sslseg.methods.base import Batch, SemiSegmentor, losses_alone, losses_only
from sslseg.registry import METHODS


@METHODS.register_module()
class Supervised(SemiSegmentor):
    """Train on the labelled images only; the lower bound of every semi-supervised method."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled = batch["labeled_weak"]
        with losses_alone():
            return losses_only(self.student.loss(labeled["inputs"], labeled["data_samples"]))
