"""AdvSSL: a discriminator learns to distinguish predictions from labels, and the segmentor to fool it.

Hung, Tsai, Liou, Lin and Yang, Adversarial Learning for Semi-Supervised Semantic Segmentation, BMVC 2018, Sec. 3.3; as a
baseline in the GCT paper (Sec. 4, Appendix C), which leaves L_semi out since other tasks have no class probabilities.

| Hung et al. | here | shape |
|---|---|---|
| S(X), Y | ``predictions``, ``truth`` | N x C x H x W |
| D | ``discriminator`` | N x 1 x H x W |
| L_D, Eq. (1) | ``loss_discriminator`` | scalar |
| L_adv, Eq. (4), of labeled and unlabeled images | ``loss_adversarial``, ``loss_adversarial_unlabeled`` | scalar |
| L_semi, Eq. (5); T_semi | ``loss_semi``; ``threshold`` | scalar |

As in GCT, one backward pass serves both optimizers: the discriminator is frozen in the segmentor's losses. It learns from
labeled images only. Choices: L_semi begins at the fraction ``semi_start`` of training (there 5,000 of 20,000 iterations);
pixels without a label, and padding, are ignored, and 0 in what the discriminator reads, predictions and labels: it sees
beyond a pixel, and would distinguish both by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sslseg.functional.consistency import cross_entropy, mean
from sslseg.functional.schedule import Duration, duration
from sslseg.methods.base import Batch, SemiSegmentor, frozen
from sslseg.networks.discriminator import Discriminator
from sslseg.registry import MODELS
from sslseg.settings import DEFAULTS


def adversarial_bce(logits: Tensor, valid_mask: Tensor, *, true: bool) -> Tensor:
    """Return the mean binary cross entropy of a discriminator's logits with ``true``.

    **Shape**: N x 1 x H x W logits and bool -> scalar.
    """
    return mean(F.softplus(-logits if true else logits), valid_mask)


@MODELS.register_module()
class AdvSSL(SemiSegmentor):
    """Adversarial semi-supervised segmentation."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak",)}
    optimizers: ClassVar[dict[str, dict[str, Any]]] = {"discriminator": dict(type="Adam", lr=1e-4, betas=(0.9, 0.99))}

    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        discriminator: Annotated[Mapping[str, Any], Discriminator, "Settings of the discriminator."] = DEFAULTS,
        labeled_weight: Annotated[float, "Weight of L_adv on labeled images."] = 0.01,
        unlabeled_weight: Annotated[float, "Weight of L_adv on unlabeled images."] = 0.001,
        semi_weight: Annotated[
            float, "Weight of L_semi; 0 leaves it out, as the GCT paper does; Hung et al.: 0.1."
        ] = 0.0,
        threshold: Annotated[float, "T_semi: how true a pixel must look for L_semi."] = 0.2,
        semi_start: Annotated[Duration, "When L_semi begins."] = 0.25,
    ) -> None:
        super().__init__(segmentor=segmentor)
        self.discriminator = Discriminator(self.task.channels, **discriminator)
        self.labeled_weight, self.unlabeled_weight = labeled_weight, unlabeled_weight
        self.semi_weight, self.threshold = semi_weight, threshold
        self.semi_start = duration(semi_start, name="semi_start")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, unlabeled = batch["labeled_weak"], batch["unlabeled_weak"]
        losses, logits, _ = self.supervise(labeled, unlabeled["inputs"])
        has_label, valid = self.task.valid_mask(labeled), unlabeled["valid"][:, None]
        predictions = self.task.activate(logits).where(torch.cat((has_label, valid)), 0.0)
        number = len(has_label)
        with frozen(self.discriminator):
            verdicts = self.discriminator(predictions)
        losses["loss_adversarial"] = self.labeled_weight * adversarial_bce(
            verdicts[:number], has_label, true=True
        )  # Eq. (4)
        losses["loss_adversarial_unlabeled"] = self.unlabeled_weight * adversarial_bce(
            verdicts[number:], valid, true=True
        )
        if self.semi_weight:  # Eq. (5): the own class where it looks true
            begun = self.progress >= self.fraction(self.semi_start)
            trusted = (verdicts[number:].sigmoid() > self.threshold) & valid & begun
            classes = logits[number:].detach().max(dim=1).indices
            # A mean over all valid pixels, so that it grows with those that are trusted.
            factor = mean(trusted.float(), valid)
            losses["loss_semi"] = self.semi_weight * factor * cross_entropy(logits[number:], classes, trusted[:, 0])
        classes = labeled["labels"][:, None].where(has_label, 0)
        truth = torch.zeros_like(predictions[:number]).scatter_(1, classes, 1.0).where(has_label, 0.0)
        verdicts = self.discriminator(torch.cat((predictions[:number].detach(), truth)))  # Eq. (1)
        fake, real = (
            adversarial_bce(part, has_label, true=side)
            for part, side in zip(verdicts.chunk(2), (False, True), strict=True)
        )
        return losses | dict(loss_discriminator=fake + real)

    def bare_passes(self, batch: Batch) -> list[Tensor]:
        images = torch.cat([view["inputs"] for view in batch.values()])
        number = len(batch["labeled_weak"]["inputs"])
        predictions = images.new_zeros(len(images), self.task.channels, *images.shape[-2:]).requires_grad_()
        with frozen(self.discriminator):
            verdicts = self.discriminator(predictions)
        pairs = self.discriminator(predictions[:number].detach().repeat(2, 1, 1, 1))
        return [*super().bare_passes(batch), verdicts, pairs]
