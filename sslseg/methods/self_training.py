"""Self-training on a store: a fresh student learns from labels and from the stored pixels that are trusted.

The end of the GCT pipeline; Ke et al., ECCV 2020, Sec. 3.1, take 1 - F(x, T(x)) for the confidence of a prediction.

| quantity | here | shape |
|---|---|---|
| stored mask, ignored where ``--keep`` drops it | ``pseudo_masks`` | N x H x W |
| weight of ``--weight``, else 1 | ``pseudo_weights`` | N x H x W |
| weighted mean of the cross entropy | ``loss_pseudo`` | scalar |

The paper trains no such student: the loss is the plain cross entropy of hard masks, as in the first stage of most
self-training, with equally many stored and labeled images.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from torch import Tensor

from sslseg.functional.consistency import cross_entropy
from sslseg.methods.base import Batch, SemiSegmentor
from sslseg.registry import MODELS


@MODELS.register_module()
class SelfTraining(SemiSegmentor):
    """A student of stored masks."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("strong",)}
    needs_pseudo_masks: ClassVar[bool] = True
    takes_weights: ClassVar[bool] = True
    pipeline: ClassVar[tuple[str, ...]] = (
        "train --method supervised",
        "pseudolabel --subset train",
        "refine --method self-training",
        "eval",
    )

    def __init__(
        self, *, segmentor: dict[str, Any], weight: Annotated[float, "Weight of the stored masks' loss."] = 1.0
    ) -> None:
        super().__init__(segmentor=segmentor)
        self.weight = weight

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, stored = batch["labeled_weak"], batch["unlabeled_strong"]
        losses, logits, _ = self.supervise(labeled, stored["inputs"])
        masks = stored["pseudo_masks"]
        valid = masks != self.task.ignore_index
        weights = valid * stored["pseudo_weights"] if "pseudo_weights" in stored else valid
        loss = cross_entropy(logits[len(labeled["inputs"]) :], masks.where(valid, 0), weights)
        return losses | dict(loss_pseudo=self.weight * loss)
