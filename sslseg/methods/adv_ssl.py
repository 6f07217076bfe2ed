"""AdvSSL: a discriminator learns to tell predictions from labels, the segmentor to pass for labels.

Hung, Tsai, Liou, Lin and Yang, Adversarial Learning for Semi-Supervised Semantic Segmentation, BMVC 2018, Sec. 3.3; as a
baseline in the GCT paper (Sec. 4, Appendix C), which leaves L_semi out since other tasks have no class probabilities.

| Hung et al. | here | shape |
|---|---|---|
| S(X), Y | ``predictions``, ``truth`` | N x C x H x W |
| D | ``discriminator`` | N x 1 x H x W |
| L_D, Eq. (1) | ``loss_discriminator`` | scalar |
| L_adv, Eq. (4), of labelled and unlabelled images | ``loss_adversarial``, ``loss_adversarial_unlabeled`` | scalar |
| L_semi, Eq. (5); T_semi | ``loss_semi``; ``threshold`` | scalar |

As in GCT, one backward pass takes both steps: the discriminator's weights are constants in the segmentor's. It learns from
labelled images only. Choices: L_semi begins at the share ``semi_start`` of the training (there 5,000 of 20,000 steps);
pixels whose truth is unknown, or that padding added, do not count.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sslseg.functional.consistency import cross_entropy, mean
from sslseg.methods.base import Batch, SemiSegmentor, fixed
from sslseg.networks.discriminator import Discriminator
from sslseg.registry import METHODS


def judged(logits: Tensor, counted: Tensor, *, true: bool) -> Tensor:
    """Return the mean cross entropy of a discriminator's verdict with ``true``.

    **Shape**: N x 1 x H x W logits and bool -> scalar.
    """
    return mean(F.softplus(-logits if true else logits), counted)


@METHODS.register_module()
class AdvSSL(SemiSegmentor):
    """Adversarial semi-supervised segmentation.

    Args:
        discriminator: ``width`` of the discriminator.
        labeled_weight, unlabeled_weight: of L_adv on either part.
        semi_weight: of L_semi; 0 leaves it out, as the GCT paper does.
        threshold: T_semi, how true a pixel must look for L_semi.
        semi_start: share of the training after which L_semi begins.
    """

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak",)}

    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        discriminator: dict[str, Any],
        labeled_weight: float,
        unlabeled_weight: float,
        semi_weight: float,
        threshold: float,
        semi_start: float,
    ) -> None:
        super().__init__(segmentor=segmentor)
        self.discriminator = Discriminator(self.task.channels, **discriminator)
        self.labeled_weight, self.unlabeled_weight = labeled_weight, unlabeled_weight
        self.semi_weight, self.threshold, self.semi_start = semi_weight, threshold, semi_start

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, unlabeled = batch["labeled_weak"], batch["unlabeled_weak"]
        losses, logits, _ = self.supervise(labeled, unlabeled["inputs"])
        predictions = self.task.activate(logits)
        known, valid = self.task.known(labeled), unlabeled["valid"][:, None]
        number = len(known)
        with fixed(self.discriminator):
            verdicts = self.discriminator(predictions)
        losses["loss_adversarial"] = self.labeled_weight * judged(verdicts[:number], known, true=True)  # Eq. (4)
        losses["loss_adversarial_unlabeled"] = self.unlabeled_weight * judged(verdicts[number:], valid, true=True)
        if self.semi_weight:  # Eq. (5): the own class where it passes for true
            trusted = (verdicts[number:].sigmoid() > self.threshold) & valid & (self.progress >= self.semi_start)
            classes = logits[number:].detach().max(dim=1).indices
            # A mean over all valid pixels, so that it grows with those that are trusted.
            share = mean(trusted.float(), valid)
            losses["loss_semi"] = self.semi_weight * share * cross_entropy(logits[number:], classes, trusted[:, 0])
        classes = labeled["labels"][:, None].where(known, 0)
        truth = torch.zeros_like(predictions[:number]).scatter_(1, classes, 1.0)
        verdicts = self.discriminator(torch.cat((predictions[:number].detach(), truth)))  # Eq. (1)
        fake, real = (
            judged(part, known, true=side) for part, side in zip(verdicts.chunk(2), (False, True), strict=True)
        )
        return losses | dict(loss_discriminator=fake + real)
