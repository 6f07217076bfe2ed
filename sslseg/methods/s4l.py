"""S4L: beside its own task the segmentor learns by how much an image was rotated, which needs no labels.

Zhai, Oliver, Kolesnikov and Beyer, S4L: Self-Supervised Semi-Supervised Learning, ICCV 2019, Sec. 4.1; as a baseline in the
GCT paper (Sec. 4, Appendix C): a classifier of 0, 90, 180 and 270 degrees after the task model, cross entropy, weight 0.1.

| paper | here | shape |
|---|---|---|
| r(x), x turned by r quarters | ``turned`` | N x 3 x H x W |
| the classifier | ``classifier`` | N x 4 |
| L_rot; its weight | ``loss_rotation``; ``weight`` | scalar |

As in the authors' program of GCT, the batch is doubled: each image is seen upright and turned by 1, 2 or 3 quarters, and the
classifier reads the logits. The task's own loss is that of the upright labelled images.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sslseg.errors import UserError
from sslseg.methods.base import Batch, SemiSegmentor
from sslseg.networks.discriminator import RotationClassifier
from sslseg.registry import METHODS


def quarter_turns(images: Tensor, quarters: Tensor) -> Tensor:
    """Rotate each image counter-clockwise by its number of quarters, without waiting for the device.

    **Shape**: N x C x S x S and N int64 in 0..3 -> N x C x S x S.
    """
    every = torch.stack([images.rot90(number, (2, 3)) for number in range(4)])
    return every[quarters, torch.arange(len(images), device=images.device)]


@METHODS.register_module()
class S4L(SemiSegmentor):
    """Self-supervision by rotation.

    Args:
        classifier: ``width`` of the classifier.
        weight: of L_rot.
    """

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak",)}

    def __init__(self, *, segmentor: dict[str, Any], classifier: dict[str, Any], weight: float) -> None:
        super().__init__(segmentor=segmentor)
        self.classifier = RotationClassifier(self.task.channels, **classifier)
        self.weight = weight

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, unlabeled = batch["labeled_weak"]["inputs"], batch["unlabeled_weak"]["inputs"]
        if labeled.shape[-2] != labeled.shape[-1]:
            raise UserError(
                f"method s4l rotates images, which needs square crops, not {tuple(labeled.shape[-2:])}; mend --crop"
            )
        upright = torch.cat((labeled, unlabeled))
        quarters = torch.randint(1, 4, (len(upright),), device=upright.device)
        others = torch.cat((unlabeled, quarter_turns(upright, quarters)))
        losses, logits, _ = self.supervise(batch["labeled_weak"], others)
        angles = torch.cat((torch.zeros_like(quarters), quarters))
        return losses | dict(loss_rotation=self.weight * F.cross_entropy(self.classifier(logits), angles))
