"""FixMatch for segmentation, with a mean teacher: the confident classes of the weak view are the labels of the strong view.

Sohn et al., FixMatch, NeurIPS 2020, carried over to segmentation by UniMatch (Yang et al., CVPR 2023, Sec. 3.1) and with the
teacher of UniMatch V2 (Yang et al., TPAMI 2025, Sec. 3.1), whose baseline it is.

| paper | here | shape |
|---|---|---|
| x_w, x_s, the views | ``weak``, ``strong`` | N x 3 x H x W |
| p_w, of the EMA teacher | ``teacher(...)`` | N x C x H x W |
| L_u = mean of 1(max p_w >= tau) H(p_s, argmax p_w) | ``accepted_cross_entropy`` | scalar |
| L = 1/2 (L_x + lambda L_u) | ``losses`` | scalar |

The strong view changes colors (``views.strong``), then images and labels are mixed with those of the next image of the batch,
inside a small random box (CutMix). In the mean, rejected pixels count as 0: the term grows with what is accepted.

Choices: labeled and strongly augmented images go through the student together, as in the official implementation, so that
BatchNorm sees both. Partners are other images of the batch: the first official implementations read one order of the images
twice, and mostly mixed an image with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from sslseg.functional.mixing import check_partners, paste, small_boxes
from sslseg.functional.pseudo_labels import PseudoLabels, accepted_cross_entropy
from sslseg.functional.schedule import Decay
from sslseg.methods.base import Batch, View
from sslseg.methods.ema import DecayStart, Teacher
from sslseg.methods.weak_to_strong import WeakToStrong, seen_in
from sslseg.registry import MODELS
from sslseg.settings import checked


def mixing(view: View, prob: float) -> Tensor:
    """Return where images keep their own pixels if a box of each, with probability ``prob``, is to come from another one.

    **Shape**: -> N x 1 x H x W bool.
    """
    images = view["inputs"]
    size = (images.shape[-2], images.shape[-1])
    if not prob:
        return torch.ones(len(images), 1, *size, dtype=torch.bool, device=images.device)
    check_partners(images, "CutMix", instead="method.mix_prob=0")
    return ~small_boxes(len(images), size, prob=prob, device=images.device)


def mix_view(view: View, labels: PseudoLabels, prob: float) -> tuple[Tensor, PseudoLabels]:
    """Replace a box of each image, with probability ``prob``, by what the next image of the batch has there; labels likewise.

    **Shape**: N x 3 x H x W and labels N x H x W -> the same.
    """
    kept = mixing(view, prob)
    return paste(view["inputs"], kept), labels.pasted(kept)


def halved(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the labeled images' share of L: L_x / 2."""
    return {name: 0.5 * value for name, value in losses.items()}


MixProb = Annotated[float, "Probability that an image of a strong view gets a box of another one."]


@MODELS.register_module()
class FixMatch(WeakToStrong):
    """FixMatch with a mean teacher."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak", "strong")}

    @checked()
    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        mix_prob: MixProb = 0.5,
        decay: Annotated[Decay, "EMA decay of the teacher."] = 0.996,
        decay_start: DecayStart = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(segmentor=segmentor, **settings)
        self.mix_prob = mix_prob
        self.teacher: Teacher = Teacher(self.student, decays=[(0.0, decay)], start=decay_start)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, weak = batch["labeled_weak"], batch["unlabeled_weak"]
        own = PseudoLabels.of(self.teacher(weak["inputs"]), weak["valid"])
        images, labels = [], []
        for name in self.views["unlabeled"][1:]:
            view = batch[f"unlabeled_{name}"]
            mixed_images, mixed_labels = mix_view(view, seen_in(view, own), self.mix_prob)
            self.acceptance.add(mixed_labels.classes, mixed_labels.accepted(self.threshold), mixed_labels.valid)
            images.append(mixed_images)
            labels.append(mixed_labels)
        losses, logits, _ = self.supervise(labeled, torch.cat(images), perturb=self.perturb)
        predicted = logits[len(labeled["inputs"]) :].chunk(len(images))
        terms = [accepted_cross_entropy(*pair, self.threshold) for pair in zip(predicted, labels, strict=True)]
        return halved(losses) | dict(loss_unlabeled=0.5 * self.current_weight * torch.stack(terms).mean())

    def perturb(self, features: Sequence[Tensor], labeled: int) -> Sequence[Tensor]:
        """Return the features as they are; ``labeled`` is the number of labeled images, which come first."""
        return features
