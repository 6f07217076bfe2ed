"""UniMatch (V1): two strong views of each image and one perturbation of its features learn from the weak view's confident classes.

Yang, Qi, Feng, Zhang and Shi, Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation, CVPR 2023, Sec. 3.

| paper | here | shape |
|---|---|---|
| x_w; x_s1, x_s2 | ``weak``; ``STRONG`` | N x 3 x H x W each |
| p_w, p_fp | ``weak``, ``perturbed`` | N x C x H x W |
| p_s1, p_s2 | ``strong`` | N x C x H x W each |
| H(p, argmax p_w) where max p_w >= tau | ``accepted_cross_entropy`` | scalar |
| L = 1/2 (L_x + lambda (mu / 2 (L_s1 + L_s2) + (1 - mu) L_fp)), mu 0.5 | ``own_losses`` | scalar |

As in the official implementation, labeled and weak images go through the student together, in training mode and without
any mixing, so that BatchNorm has one clean pass; the weak images' features also go through the heads with half of their channels
dropped; the strong views are a second pass. There is no teacher: the student is validated and exported.

Choices: the perturbed copy is made of the unlabeled images only; the official one makes it of all and throws the labeled part away.
CutMix partners are other images of the batch (``fixmatch``), so that their labels come from the same pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslseg.functional.mixing import paste
from sslseg.functional.pseudo_labels import PseudoLabels, accepted_cross_entropy
from sslseg.methods.base import Batch
from sslseg.methods.fixmatch import MixProb, mixing
from sslseg.methods.unimatch_v2 import check_maps
from sslseg.methods.weak_to_strong import WeakToStrong, seen_in
from sslseg.networks.logits import head_outputs, logits_of
from sslseg.registry import MODELS
from sslseg.settings import checked

STRONG = ("unlabeled_strong", "unlabeled_strong_2")


class Predictions(NamedTuple):
    """What the student predicts in an iteration.

    **Shape**: losses of the labeled images; logits N x C x H x W, two for ``strong``; ``kept`` N x 1 x H x W bool, two: where
    strong views were not mixed.
    """

    losses: dict[str, Tensor]
    weak: Tensor
    perturbed: Tensor
    strong: Sequence[Tensor]
    kept: Sequence[Tensor]


@MODELS.register_module()
class UniMatch(WeakToStrong):
    """UniMatch."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak", "strong", "strong_2")}

    @checked()
    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        image_share: Annotated[float, "mu: share of the strong views; the rest is the perturbed features'."] = 0.5,
        dropout: Annotated[float, "Fraction of the channels that the perturbation of the features drops."] = 0.5,
        mix_prob: MixProb = 0.5,
        **settings: Any,
    ) -> None:
        super().__init__(segmentor=segmentor, **settings)
        self.image_share, self.dropout, self.mix_prob = image_share, dropout, mix_prob

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self.own_losses(batch, self.predict(batch), share=0.5)

    def predict(self, batch: Batch) -> Predictions:
        """Return what the student predicts in both of its passes, and by which boxes its strong views were mixed."""
        labeled, weak = batch["labeled_weak"], batch["unlabeled_weak"]
        losses, logits, _ = self.supervise(labeled, weak["inputs"], perturb=self.add_perturbed)
        weak_logits, perturbed = logits[len(labeled["inputs"]) :].chunk(2)
        kept = [mixing(batch[name], self.mix_prob) for name in STRONG]
        images = torch.cat([paste(batch[name]["inputs"], own) for name, own in zip(STRONG, kept, strict=True)])
        strong = logits_of(self.student, self.student.extract_feat(images), images.shape[-2:]).chunk(2)
        return Predictions(losses, weak_logits, perturbed, strong, kept)

    def own_losses(self, batch: Batch, made: Predictions, *, share: float) -> dict[str, Tensor]:
        """Return L_x and lambda L_u, multiplied by ``share``, with the student's own classes as labels."""
        term = functools.partial(accepted_cross_entropy, threshold=self.threshold)
        labels = PseudoLabels.of(made.weak.detach().softmax(dim=1), batch["unlabeled_weak"]["valid"])
        self.acceptance.add(labels.classes, labels.accepted(self.threshold), labels.valid)
        strong, features = self.terms(batch, made, labels, term)
        return {name: share * value for name, value in made.losses.items()} | dict(
            loss_strong=share * self.current_weight * strong, loss_features=share * self.current_weight * features
        )

    def terms(
        self, batch: Batch, made: Predictions, labels: PseudoLabels, term: Callable[[Tensor, PseudoLabels], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return mu / 2 (L_s1 + L_s2) and (1 - mu) L_fp, learned from labels of the weak views."""
        strong = [
            term(logits, seen_in(batch[name], labels).pasted(kept))
            for name, logits, kept in zip(STRONG, made.strong, made.kept, strict=True)
        ]
        features = term(made.perturbed, labels)
        return self.image_share * torch.stack(strong).mean(), (1.0 - self.image_share) * features

    def add_perturbed(self, features: Sequence[Tensor], labeled: int) -> Sequence[Tensor]:
        """Append the weak images' features once more, with random channels dropped.

        **Shape**: levels of (L + N) x C x h x w -> (L + 2 N) x C x h x w.
        """
        check_maps(features)
        return [torch.cat((level, F.dropout2d(level[labeled:], self.dropout))) for level in features]

    def bare_passes(self, batch: Batch) -> list[Tensor]:
        labeled, weak = batch["labeled_weak"]["inputs"], batch["unlabeled_weak"]["inputs"]
        features = self.student.extract_feat(torch.cat((labeled, weak)))
        features = [torch.cat((level, level[len(labeled) :])) for level in features]
        first = self.student.decode_head(features)
        return [first, *head_outputs(self.student, torch.cat([batch[name]["inputs"] for name in STRONG]))]
