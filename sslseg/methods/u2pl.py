"""U2PL: reliable predictions are pseudo-labels, unreliable ones tell which classes a pixel is not.

Wang et al., Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels, CVPR 2022.

| paper | here | shape |
|---|---|---|
| f and h of theta_s; of theta_t | ``student``; ``teacher`` | |
| g of theta_s; of theta_t | ``projection``; ``key_projection`` | |
| L_s, Eq. (2) | ``decode.loss_*`` | scalar |
| H(p), Eq. (5), divided by log C; gamma_t | ``entropy``; ``limit`` | N x H x W; scalar |
| y-hat, Eq. (6) | ``classes`` where ``reliable`` | N x H x W |
| alpha_t, Eq. (7) | ``alpha`` | |
| lambda_u, Eq. (8); eta | ``weight``; ``unlabeled_weight`` | scalar |
| lambda_u L_u, Eq. (3) | ``loss_unlabeled`` | scalar |
| A_c, Eqs. (9) to (11) | ``anchors`` == c | P |
| z+, Eq. (12) | ``positives`` | C x D |
| n, Eqs. (13) to (15) | ``negative`` | P x C |
| Q_c | ``bank`` | |
| lambda_c L_c, Eq. (4), or (A1) | ``loss_contrast`` | scalar |

Choices where paper and authors' program differ, or are silent:
- The teacher gives labels and probabilities in evaluation mode: labels for the weak view, which are then mixed with the
  images, probabilities and features for the mixed images, as Algorithm 1 asks of all x in B_l and B_u.
- ``loss_unlabeled`` is the mean over reliable pixels times lambda_u, as in the program.
- Contrast is at the resolution of the features (there, too); labels are taken to it by nearest neighbours.
- Unlabelled anchors are reliable pixels, Eq. (10); the program takes the alpha_t surest only. M = 50 and N = 256 as in the
  paper; the program has 256 and 50.
- Anchors are sampled "for each class that appears in the current mini batch", and the mean in Eq. (4) is over those classes
  that have negatives, too. All ranks' anchors make z+; all ranks' negatives enter every bank.
- The ranks r_l and r_h end at the number of classes: ``fitted_ranks``.
- With ``ael`` (Table 3), labelled images are copy-pasted, unlabelled ones mixed by adaptive CutMix, and reliable pixels are
  sampled and weighted as ``methods.ael`` does; the paper does not say how the two were joined.
- Epochs are passes through the unlabelled images. While warming up, the teacher is the student.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslseg.errors import UserError
from sslseg.functional import contrast
from sslseg.functional.confidence import normalized_entropy
from sslseg.functional.consistency import cross_entropy, mean
from sslseg.functional.mixing import MIXES, mixed
from sslseg.methods.ael import pasted
from sslseg.methods.base import Batch, Branch, SemiSegmentor, move_targets
from sslseg.networks.contrast import Contrast
from sslseg.networks.equalizer import Equalizer
from sslseg.networks.projection import Projection, before_classifier
from sslseg.networks.teacher import Average, Teacher
from sslseg.registry import METHODS

RELIABILITIES = ("unreliable", "reliable", "all")


def fitted_ranks(low: int, high: int, num_classes: int) -> tuple[int, int]:
    """Return r_l and r_h for so many classes: with few of them, r_l leaves the least probable class above it."""
    return min(low, num_classes - 1), min(high, num_classes)


@METHODS.register_module()
class U2PL(SemiSegmentor):
    """U2PL.

    Args:
        mix: how unlabelled images are mixed: ``cutmix``, ``cutout``, ``classmix``, ``ael`` (with all that ``equalizer``
            turns on, of labelled images, too) or ``none``.
        unlabeled_weight: eta.
        alpha: alpha_0, the share of unreliable pixels at the start.
        adjust: whether alpha falls from epoch to epoch (dynamic partition adjustment).
        epochs: passes through the unlabelled images in the whole training.
        warmup: share of the training with labelled images only.
        decay: of the moving average.
        contrast_weight: lambda_c; 0 leaves the contrast out.
        threshold: delta_p.
        ranks: r_l and r_h; None: no probability rank threshold.
        reliability: the pixels that give negatives: ``unreliable``, ``reliable`` (as many, the surest) or ``all``.
        contrast: further settings of ``networks.contrast.Contrast``.
        equalizer: settings of ``networks.equalizer.Equalizer``, used where ``mix`` is ``ael``.
    """

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak", "strong")}

    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        mix: str,
        unlabeled_weight: float,
        alpha: float,
        adjust: bool,
        epochs: float,
        warmup: float,
        decay: float,
        contrast_weight: float,
        threshold: float,
        ranks: tuple[int, int] | None,
        reliability: str,
        contrast: dict[str, Any],
        equalizer: dict[str, Any],
    ) -> None:
        super().__init__(segmentor=segmentor)
        for name, value, known in (("mix", mix, (*MIXES, "ael", "none")), ("reliability", reliability, RELIABILITIES)):
            if value not in known:
                raise UserError(f"method.{name} {value!r} is unknown; use one of: {', '.join(known)}")
        self.mix, self.unlabeled_weight, self.alpha, self.adjust = mix, unlabeled_weight, alpha, adjust
        self.epochs, self.warmup = epochs, warmup
        decays = [(warmup, decay)]
        self.teacher: Teacher = Teacher(self.student, decays)
        self.contrast_weight, self.threshold, self.reliability = contrast_weight, threshold, reliability
        classes = self.task.channels
        self.equalizer = Equalizer(classes, **equalizer) if mix == "ael" else None
        self.ranks = None if ranks is None else fitted_ranks(*ranks, classes)
        if contrast_weight:
            self.contrast = Contrast(classes, **contrast)
            self.projection = Projection(self.student.decode_head, self.contrast.dim)
            self.key_projection = Average(self.projection, decays)
            if ranks is not None and self.ranks != tuple(ranks):
                r_l, r_h = fitted_ranks(*ranks, classes)
                self.remarks.append(
                    f"ranks of negatives: {r_l} to {r_h}, not {ranks[0]} to {ranks[1]}: {classes} classes"
                )
            size = self.contrast.bank.bytes / 2**20
            self.remarks.append(f"memory bank: {classes} queues on the training device, at most {size:.0f} MiB in all")

    def averages(self) -> list[tuple[Average, nn.Module]]:
        more: list[tuple[Average, nn.Module]] = []
        if self.contrast_weight:
            more = [(self.key_projection, self.projection)]
        return super().averages() + more

    def state_report(self) -> dict[str, Any]:
        """Return how full each class's queue is, in [0, 1]."""
        if not self.contrast_weight:
            return {}
        bank = self.contrast.bank
        return dict(bank=[round(share, 4) for share in (bank.counts / bank.sizes).tolist()])

    def current_alpha(self) -> float:
        """Return alpha_t, Eq. (7)."""
        past = int(self.progress * self.epochs) / self.epochs
        return self.alpha * (1.0 - past) if self.adjust else self.alpha

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, weak, strong = (batch[name] for name in ("labeled_weak", "unlabeled_weak", "unlabeled_strong"))
        if self.equalizer is not None:
            labeled = pasted(self.equalizer, labeled)
        if self.progress < self.warmup:
            losses, logits, _ = self.supervise(labeled, None)
            self.observe(logits, labeled)
            return losses | self.idle()
        number = len(labeled["inputs"])
        images, targets, counted = strong["inputs"], move_targets(self.teacher(weak["inputs"]), strong), strong["valid"]
        if self.equalizer is not None:
            images, targets, counted = self.equalizer.mix(images, targets, counted)
        elif self.mix != "none":
            images, targets, counted = mixed(self.mix, images, targets, counted)
        certainty, classes = targets.max(dim=1)
        with before_classifier(self.student.decode_head) as features:
            losses, logits, _ = self.supervise(labeled, images)
        self.observe(logits[:number], labeled)
        with torch.no_grad(), before_classifier(self.teacher.network.decode_head) as key_features:
            scores = self.teacher.network.decode_head(
                self.teacher.network.extract_feat(torch.cat((labeled["inputs"], images)))
            )
            entropy = normalized_entropy(self.full_size(scores[number:], like=images).softmax(dim=1))
        alpha = self.current_alpha()
        limit = contrast.quantile(entropy, counted, 1.0 - alpha)
        reliable = counted & (entropy < limit)
        weight = self.unlabeled_weight / mean(reliable.float(), torch.ones_like(entropy)).clamp_min(1e-6)  # Eq. (8)
        learned = reliable.float()
        if self.equalizer is not None:
            learned = learned * self.equalizer.weights(logits[number:].detach().argmax(dim=1), certainty)
        losses["loss_unlabeled"] = weight * cross_entropy(logits[number:], classes, learned)
        if self.contrast_weight:
            chosen = counted & self.negatives_of(entropy, limit, counted, alpha)
            loss = self.compare(features[0], key_features[0], scores, labeled["labels"], classes, reliable, chosen)
            losses["loss_contrast"] = self.contrast_weight * loss
        return losses | dict(alpha=weight.new_tensor(alpha), unlabeled_weight=weight)

    def observe(self, logits: Tensor, labeled: Branch) -> None:
        """Let the equaliser, where there is one, know how the student does on labelled images."""
        if self.equalizer is not None:
            self.equalizer.observe(logits.detach().softmax(dim=1), labeled["labels"])

    def idle(self) -> dict[str, Tensor]:
        """Return a loss of 0 of what does not learn yet: data-parallel training asks for a gradient of every weight."""
        if not self.contrast_weight:
            return {}
        return dict(loss_contrast=0.0 * torch.stack([value.sum() for value in self.projection.parameters()]).sum())

    def negatives_of(self, entropy: Tensor, limit: Tensor, counted: Tensor, alpha: float) -> Tensor:
        """Return which unlabelled pixels may be negatives (Table 4).

        **Shape**: N x H x W, scalar and N x H x W bool -> N x H x W bool.
        """
        if self.reliability == "all":
            return torch.ones_like(counted)
        if self.reliability == "reliable":
            return entropy < contrast.quantile(entropy, counted, alpha)
        return entropy > limit

    def compare(
        self,
        features: Tensor,
        key_features: Tensor,
        scores: Tensor,
        labels: Tensor,
        classes: Tensor,
        reliable: Tensor,
        chosen: Tensor,
    ) -> Tensor:
        """Return L_c of labelled and unlabelled images together.

        Args:
            features, key_features: of all images, labelled ones first, from student and teacher.
            scores: the teacher's logits of all images.
            labels: of the labelled ones.
            classes, reliable, chosen: pseudo-labels of the others, where they hold, and where negatives may come from.
        """
        size = features.shape[-2:]
        known = labels != self.task.ignore_index
        maps = torch.cat((torch.stack((labels, known, known), dim=1), torch.stack((classes, reliable, chosen), dim=1)))
        labels, holds, source = F.interpolate(maps.float(), size, mode="nearest").long().transpose(0, 1).flatten(1)
        holds, source = holds.bool(), source.bool()
        vectors = rows(self.projection(features))
        with torch.no_grad():
            keys = rows(self.key_projection.network(key_features))
            probabilities = rows(scores.float().softmax(dim=1))
            anchors = contrast.anchor_classes(probabilities, labels, holds, self.threshold)
            number = known.shape[0] * size[0] * size[1]
            low, high = self.ranks or (probabilities.shape[1], probabilities.shape[1])
            negative = torch.cat(
                (
                    contrast.labeled_negatives(probabilities[:number], labels[:number], holds[:number], low),
                    contrast.unlabeled_negatives(
                        probabilities[number:], source[number:], low if self.ranks else 0, high
                    ),
                )
            )
        return self.contrast(vectors, keys, anchors, negative)


def rows(maps: Tensor) -> Tensor:
    """Return maps as one row for each pixel.

    **Shape**: N x C x H x W -> N H W x C.
    """
    return maps.movedim(1, -1).flatten(0, 2)
