"""The supervised baseline: the segmentor's own loss on the labeled images, nothing else."""

from __future__ import annotations

from torch import Tensor

from sslseg.compat import skip_accuracy
from sslseg.methods.base import Batch, SemiSegmentor, drop_metrics
from sslseg.registry import MODELS


@MODELS.register_module()
class Supervised(SemiSegmentor):
    """Train on the labeled images only; the lower bound of every semi-supervised method."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled = batch["labeled_weak"]
        with skip_accuracy():
            return drop_metrics(self.student.loss(labeled["inputs"], labeled["data_samples"]))
