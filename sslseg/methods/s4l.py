"""S4L: beside its own task the segmentor learns by how much an image was rotated, which needs no labels.

Zhai, Oliver, Kolesnikov and Beyer, S4L: Self-Supervised Semi-Supervised Learning, ICCV 2019, Sec. 4.1; as a baseline in the
GCT paper (Sec. 4, Appendix C): a classifier of 0, 90, 180 and 270 degrees after the task model, cross entropy, weight 0.1.

| paper | here | shape |
|---|---|---|
| r(x), x rotated by r quarters | ``rotated`` | N x 3 x H x W |
| the classifier | ``classifier`` | N x 4 |
| L_rot; its weight | ``loss_rotation``; ``weight`` | scalar |

As in GCT's official implementation, the batch is doubled: each image is seen upright and rotated by 1, 2 or 3 quarters, and
the classifier reads the logits. The task's own loss is that of the upright labeled images. Padding lies at the right and at
the bottom, so that it would give the rotation away: padded images, which end in a row or column without any valid (labeled)
pixel, do not count in L_rot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sslseg.errors import UserError
from sslseg.functional.consistency import mean
from sslseg.methods.base import Batch, SemiSegmentor
from sslseg.networks.discriminator import RotationClassifier
from sslseg.networks.logits import head_outputs
from sslseg.registry import MODELS
from sslseg.settings import DEFAULTS


def rotate_quarters(images: Tensor, quarters: Tensor) -> Tensor:
    """Rotate each image counter-clockwise by its number of quarters, without synchronizing.

    **Shape**: N x C x S x S and N int64 in 0..3 -> N x C x S x S.
    """
    every = torch.stack([images.rot90(number, (2, 3)) for number in range(4)])
    return every[quarters, torch.arange(len(images), device=images.device)]


def without_padding(valid_mask: Tensor) -> Tensor:
    """Return which images reach both the right and the bottom edge.

    **Shape**: N x H x W bool -> N bool.
    """
    return valid_mask[:, -1].any(dim=1) & valid_mask[:, :, -1].any(dim=1)


@MODELS.register_module()
class S4L(SemiSegmentor):
    """Self-supervision by rotation."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak",)}

    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        classifier: Annotated[Mapping[str, Any], RotationClassifier, "Settings of the classifier."] = DEFAULTS,
        weight: Annotated[float, "Weight of L_rot."] = 0.1,
    ) -> None:
        super().__init__(segmentor=segmentor)
        self.classifier = RotationClassifier(self.task.channels, **classifier)
        self.weight = weight

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, unlabeled = batch["labeled_weak"]["inputs"], batch["unlabeled_weak"]["inputs"]
        if labeled.shape[-2] != labeled.shape[-1]:
            raise UserError(
                f"method s4l rotates images, which needs square crops, not {tuple(labeled.shape[-2:])}; change --crop"
            )
        upright = torch.cat((labeled, unlabeled))
        quarters = torch.randint(1, 4, (len(upright),), device=upright.device)
        others = torch.cat((unlabeled, rotate_quarters(upright, quarters)))
        losses, logits, _ = self.supervise(batch["labeled_weak"], others)
        angles = torch.cat((torch.zeros_like(quarters), quarters))
        rotation = F.cross_entropy(self.classifier(logits), angles, reduction="none")
        valid = torch.cat((self.task.valid_mask(batch["labeled_weak"])[:, 0], batch["unlabeled_weak"]["valid"]))
        whole = without_padding(valid).repeat(2)
        return losses | dict(loss_rotation=self.weight * mean(rotation, whole))

    def bare_passes(self, batch: Batch) -> list[Tensor]:
        images = torch.cat([view["inputs"] for view in batch.values()])
        outputs = head_outputs(self.student, torch.cat((images, images)))
        return [*outputs, self.classifier(outputs[0])]
