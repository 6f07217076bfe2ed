"""AugSeg: FixMatch with intensity augmentation, and labeled pixels pasted into images in which the teacher is not confident.

Zhao et al., Augmentation Matters: A Simple-yet-Effective Approach to Semi-Supervised Semantic Segmentation, CVPR 2023, Sec. 3.

| paper | here | shape |
|---|---|---|
| rho = mean of max p (1 - H(p) / ln C), an image's confidence | ``image_confidence`` | N |
| with probability 1 - rho, a box of a labeled image | ``inject``, lambda ~ Beta(8, 2) | N x 3 x H x W |
| a box of another image of those | ``mix_images``, lambda ~ Beta(4, 4) | N x 3 x H x W |
| L_u = mean of 1(max p >= tau) H(p_s, argmax p) | ``accepted_cross_entropy`` | scalar |
| L = L_x + lambda_u L_u | ``loss`` | scalar |

A box has 1 - lambda of the image's area, one lambda for all images of an iteration, and its center anywhere but in the first
eighth of a side; what is outside of the image is cut off. All as in the official implementation, which the text leaves open.

Departures: partners are other images of the batch, not those of a permutation that may leave an image where it is. Padding and
pasted pixels without a label count neither in the sum of L_u nor in its divisor.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sslseg.functional.confidence import normalized_entropy
from sslseg.functional.mixing import check_partners, inside
from sslseg.functional.pseudo_labels import PseudoLabels, accepted_cross_entropy
from sslseg.functional.schedule import Decay
from sslseg.methods.base import Batch, View
from sslseg.methods.ema import DecayStart, Teacher
from sslseg.methods.weak_to_strong import WeakToStrong, seen_in
from sslseg.registry import MODELS
from sslseg.settings import checked

LABELED_AREA, UNLABELED_AREA = (8, 2), (4, 4)  # Beta distributions of lambda


def image_confidence(probabilities: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of max p (1 - H(p) / ln C) over the valid pixels of each image; 0 where there is none.

    **Shape**: N x C x H x W and N x H x W bool -> N in [0, 1].
    """
    values = probabilities.amax(dim=1) * (1.0 - normalized_entropy(probabilities))
    return (values * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp_min(1)


def clipped_boxes(number: int, size: tuple[int, int], area: float, *, device: torch.device) -> Tensor:
    """Return a box of that fraction of each image, as wide as high in relation to it, at a random place; True inside.

    Its center is uniform in all but the first eighth of each side, and what lies outside is cut off.

    **Shape**: N, (H, W) -> N x 1 x H x W bool.
    """
    high, wide = (int(side * area**0.5) // 2 * 2 for side in size)
    rows, columns = (torch.randint(side // 8, side, (number, 1, 1, 1), device=device) for side in size)
    return inside(rows - high // 2, columns - wide // 2, high, wide, size)


def pasted(box: Tensor, images: Tensor, labels: PseudoLabels, others: Tensor, theirs: PseudoLabels) -> Any:
    """Return images and labels with those of others inside the box.

    **Shape**: N x 1 x H x W bool, images N x 3 x H x W, labels N x H x W -> images and labels.
    """
    both = zip(theirs, labels, strict=True)
    return torch.where(box, others, images), PseudoLabels(*(torch.where(box[:, 0], *pair) for pair in both))


@MODELS.register_module()
class AugSeg(WeakToStrong):
    """AugSeg."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak", "strong")}

    @checked()
    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        injection: Annotated[
            bool,
            "Adaptive label injection: labeled pixels in images of low confidence; False: mix unlabeled images only.",
        ] = True,
        decay: Annotated[Decay, "EMA decay of the teacher."] = 0.999,
        decay_start: DecayStart = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(segmentor=segmentor, **settings)
        self.injection = injection
        self.teacher: Teacher = Teacher(self.student, decays=[(0.0, decay)], start=decay_start)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, weak, strong = (batch[name] for name in ("labeled_weak", "unlabeled_weak", "unlabeled_strong"))
        probabilities = self.teacher(weak["inputs"])
        own = seen_in(strong, PseudoLabels.of(probabilities, weak["valid"]))
        self.acceptance.add(own.classes, own.accepted(self.threshold), own.valid)
        confidence = image_confidence(probabilities, weak["valid"])
        images, labels = self.mix_images(strong["inputs"], own, labeled, confidence)
        losses, logits, _ = self.supervise(labeled, images)
        term = accepted_cross_entropy(logits[len(labeled["inputs"]) :], labels, self.threshold)
        return losses | dict(loss_unlabeled=self.current_weight * term)

    def mix_images(
        self, images: Tensor, labels: PseudoLabels, labeled: View, confidence: Tensor
    ) -> tuple[Tensor, PseudoLabels]:
        """Return every image with a box of the next one, after labeled pixels were pasted into that.

        **Shape**: N x 3 x H x W, labels N x H x W, confidence N -> images and labels.
        """
        number, size = len(images), (images.shape[-2], images.shape[-1])
        check_partners(images, "AugSeg")
        others, theirs = self.inject(images, labels, labeled, confidence) if self.injection else (images, labels)
        box = clipped_boxes(number, size, 1.0 - np.random.beta(*UNLABELED_AREA), device=images.device)
        rolled = PseudoLabels(*(values.roll(-1, dims=0) for values in theirs))
        return pasted(box, images, labels, others.roll(-1, dims=0), rolled)

    def inject(
        self, images: Tensor, labels: PseudoLabels, labeled: View, confidence: Tensor
    ) -> tuple[Tensor, PseudoLabels]:
        """Paste a box of a random labeled image, with its labels, into each image with the probability 1 - its confidence.

        **Shape**: N x 3 x H x W, labels N x H x W, confidence N -> images and labels.
        """
        number, size = len(images), (images.shape[-2], images.shape[-1])
        box = clipped_boxes(number, size, 1.0 - np.random.beta(*LABELED_AREA), device=images.device)
        box = box & (torch.rand_like(confidence) > confidence)[:, None, None, None]
        chosen = torch.randint(len(labeled["inputs"]), (number,), device=images.device)
        classes = labeled["labels"][chosen]
        known = classes != self.task.ignore_index
        truth = PseudoLabels(classes.where(known, 0), torch.ones_like(labels.confidence), known)
        return pasted(box, images, labels, labeled["inputs"][chosen], truth)
