"""U2PL: reliable predictions are pseudo-labels; unreliable pixels are negatives of unlikely classes.

Wang et al., Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels, CVPR 2022.

| paper | here | shape |
|---|---|---|
| f and h of theta_s; of theta_t | ``student``; ``teacher`` | |
| g of theta_s; of theta_t | ``projection``; ``key_projection`` | |
| L_s, Eq. (2) | ``decode.loss_*`` | scalar |
| lambda_u L_u, Eq. (3) | ``loss_unlabeled`` | scalar |
| H(p), Eq. (5), divided by log C | ``entropy`` | N x H x W |
| y-hat, Eq. (6) | ``partition.labels`` where ``reliable`` | N x H x W |
| alpha_t, Eq. (7); gamma_t | ``alpha``; ``gamma`` | scalar |
| lambda_u, Eq. (8); eta | ``adaptive_weight``; ``unlabeled_weight`` | scalar |
| A_c, Eqs. (9) to (11) | ``anchors`` == c | P |
| z+, Eq. (12) | ``positives`` | C x D |
| n, Eqs. (13) to (15) | ``negatives`` | P x C |
| Q_c | ``contrast.bank`` | |
| lambda_c L_c, Eq. (4), or (A1) | ``loss_contrast`` | scalar |

Choices where the paper and the official implementation differ, or are silent:
- Labels come from the weak view and are mixed with the images; entropy, probabilities and keys are those of the mixed
  images, as in Algorithm 1. As in the implementation, all images of an iteration are mixed, or none (``mix_prob``).
- The teacher is always in evaluation mode and averaged from the first iteration, Sec. 3.1; the warm start only leaves L_u
  and L_c out. ``teacher_warmup="copy"`` copies the student until then: a teacher of one snapshot.
- As in the implementation, L_u is the mean over reliable pixels, and the contrast has the resolution of the features.
- Unlabeled anchors are all reliable pixels, Eq. (10); there only the alpha_t most confident. M and N are the paper's.
- Eq. (4) is averaged over the classes that have both anchors and negatives. Anchors of all processes make z+, and
  negatives of all processes enter every bank. r_l and r_h depend on the number of classes (``partition.fitted_ranks``).
- With ``mix="ael"`` (Table 3) labeled images are copy-pasted, unlabeled ones mixed by adaptive CutMix, and reliable
  pixels sampled and weighted as in AEL; the paper does not say how the two are combined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslseg.functional.confidence import normalized_entropy
from sslseg.functional.consistency import DISTANCES
from sslseg.functional.mixing import mixed
from sslseg.functional.schedule import Decay, Duration, duration, sigmoid_rampup
from sslseg.methods.acceptance import Acceptance
from sslseg.methods.ael.equalizer import Equalizer
from sslseg.methods.ael.method import copy_paste
from sslseg.methods.base import Batch, SemiSegmentor, View, move_targets
from sslseg.methods.ema import EMA, DecayStart, Teacher
from sslseg.methods.u2pl.contrast import Contrast
from sslseg.methods.u2pl.partition import (
    Partition,
    Reliability,
    adaptive_weight,
    anchor_classes,
    dynamic_proportion,
    fitted_ranks,
    flatten_at,
    negative_classes,
    partition_pixels,
)
from sslseg.methods.u2pl.projection import Projection, classifier_blocks, shared_features
from sslseg.networks.logits import head_outputs
from sslseg.registry import MODELS
from sslseg.settings import DEFAULTS, checked


@MODELS.register_module()
class U2PL(SemiSegmentor):
    """Using unreliable pseudo-labels."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak", "strong")}
    pipeline: ClassVar[tuple[str, ...]] = ("train", "pseudolabel --reliability q80", "eval")
    old_settings: ClassVar[dict[str, Any]] = {
        "adjust": "dynamic_alpha",
        "epochs": None,
        "contrast": {
            "remember": "use_memory_bank",
            "size": "queue_size",
            "background": "background_queue_size",
        },
    }

    @checked()
    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        mix: Annotated[
            Literal["cutmix", "cutout", "classmix", "ael", "none"],
            "How unlabeled images are mixed; `ael` turns on all that `equalizer` does, also with labeled images.",
        ] = "cutmix",
        mix_prob: Annotated[
            float, "Probability that the unlabeled images of an iteration are mixed; `ael` mixes always."
        ] = 0.5,
        unlabeled_weight: Annotated[float, "eta: base weight of L_u."] = 1.0,
        rampup: Annotated[Duration, "Duration after the warm start over which eta grows."] = 0.0,
        consistency: Annotated[
            Literal["hard", "ce"],
            "L_u: cross entropy with the teacher's class (`hard`), Eq. (3), or with its distribution (`ce`).",
        ] = "hard",
        alpha: Annotated[float, "alpha_0: initial proportion of unreliable pixels."] = 0.2,
        dynamic_alpha: Annotated[
            bool, "Dynamic partition adjustment: alpha falls to 0 epoch by epoch, Eq. (7)."
        ] = True,
        warmup: Annotated[
            Duration, "Warm start: duration of training on labeled images only; the paper's 1 epoch is that on VOC."
        ] = "1 epoch",
        decay: Annotated[Decay, "EMA decay of the teacher."] = 0.99,
        decay_start: DecayStart = 1.0,
        teacher_warmup: Annotated[
            Literal["average", "copy"],
            "During the warm start the teacher is the EMA already, or a copy of the student.",
        ] = "average",
        contrast_weight: Annotated[float, "lambda_c; 0 leaves L_c out."] = 0.1,
        threshold: Annotated[float, "delta_p: probability that the class of an anchor must exceed."] = 0.3,
        ranks: Annotated[
            tuple[int, int] | None, "r_l and r_h: probability rank thresholds of negatives; None: without them."
        ] = (3, 20),
        reliability: Annotated[
            Reliability, "Unlabeled pixels that are negatives; `reliable`: as many pixels, those of lowest entropy."
        ] = "unreliable",
        contrast: Annotated[Mapping[str, Any], Contrast, "Further settings of the contrast."] = DEFAULTS,
        equalizer: Annotated[Mapping[str, Any], Equalizer, "Settings of AEL, where `mix` is `ael`."] = DEFAULTS,
    ) -> None:
        super().__init__(segmentor=segmentor)
        self.mix, self.mix_prob, self.distance = mix, mix_prob, DISTANCES[consistency]
        self.unlabeled_weight, self.alpha, self.dynamic_alpha = unlabeled_weight, alpha, dynamic_alpha
        self.warmup, self.rampup = duration(warmup, name="warmup"), duration(rampup, name="rampup")
        decays = [(0.0 if teacher_warmup == "average" else self.warmup, decay)]
        self.teacher: Teacher = Teacher(self.student, decays, decay_start)
        self.acceptance: Acceptance = Acceptance(self.student.num_classes)
        self.contrast_weight, self.threshold = contrast_weight, threshold
        self.reliability: Reliability = reliability
        classes = self.task.channels
        self.equalizer = Equalizer(classes, **equalizer) if mix == "ael" else None
        self.ranks = None if ranks is None else fitted_ranks(*ranks, classes)
        if contrast_weight:
            self.contrast = Contrast(classes, **contrast)
            self.projection = Projection(self.student.decode_head, self.contrast.dim)
            self.key_projection = EMA(self.projection, decays, decay_start)
            if ranks is not None and self.ranks != tuple(ranks):
                self.messages.append(
                    f"probability rank thresholds are {self.ranks}, not {tuple(ranks)}, for {classes} classes"
                )
            head = self.student.decode_head
            if classifier_blocks(head) is None:
                self.messages.append(
                    f"the representation head reads what enters the classifier: {type(head).__name__} names no blocks of"
                    " the segmentation head beside which it could lie"
                )
            size = self.contrast.bank.bytes / 2**20
            self.messages.append(f"memory bank: {classes} queues on the training device, at most {size:.0f} MiB in all")

    def ema_pairs(self) -> list[tuple[EMA, nn.Module]]:
        projections: list[tuple[EMA, nn.Module]] = []
        if self.contrast_weight:
            projections = [(self.key_projection, self.projection)]
        return super().ema_pairs() + projections

    def log_values(self) -> dict[str, Any]:
        """Return also how full each class's queue is, in [0, 1]."""
        if not self.contrast_weight:
            return super().log_values()
        bank = self.contrast.bank
        return super().log_values() | dict(bank=[round(filled, 4) for filled in (bank.counts / bank.sizes).tolist()])

    def current_alpha(self) -> float:
        """Return alpha_t."""
        if not self.dynamic_alpha:
            return self.alpha
        return dynamic_proportion(
            self.alpha,
            iteration=self.iteration,
            iterations=self.iterations,
            iterations_per_epoch=self.iterations_per_epoch,
        )

    def current_eta(self) -> float:
        """Return eta, which may grow once the warm start is over."""
        progress = self.progress - self.fraction(self.warmup)
        return self.unlabeled_weight * sigmoid_rampup(progress, self.fraction(self.rampup))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, weak, strong = (batch[name] for name in ("labeled_weak", "unlabeled_weak", "unlabeled_strong"))
        if self.equalizer is not None:
            labeled = copy_paste(self.equalizer, labeled)
        if self.progress < self.fraction(self.warmup):
            losses, logits, _ = self.supervise(labeled, None)  # Eq. (2)
            self.observe(logits, labeled)
            return losses | self.zero_contrast()
        number = len(labeled["inputs"])
        images, targets, valid = self.mix_images(strong, move_targets(self.teacher(weak["inputs"]), strong))
        with shared_features(self.student.decode_head) as features:
            losses, logits, _ = self.supervise(labeled, images)  # Eq. (2)
        self.observe(logits[:number], labeled)
        with shared_features(self.teacher.network.decode_head) as key_features:
            key_logits = self.teacher_logits(torch.cat((labeled["inputs"], images)))

        entropy = normalized_entropy(self.full_size(key_logits[number:], like=images).softmax(dim=1))  # Eq. (5)
        alpha = self.current_alpha()
        labels = targets.argmax(dim=1)
        partition = partition_pixels(entropy, labels, valid, alpha=alpha, reliability=self.reliability)

        self.acceptance.add(labels, partition.reliable, valid)
        weight = adaptive_weight(partition.reliable, self.current_eta())
        losses["loss_unlabeled"] = weight * self.unsupervised_loss(logits[number:], targets, partition.reliable)

        if self.contrast_weight:
            vectors, keys = self.project(features[0], key_features[0])
            anchors, negatives = self.candidates(key_logits, labeled["labels"], partition)
            losses["loss_contrast"] = self.contrast_weight * self.contrast(vectors, keys, anchors, negatives)
        return losses | dict(alpha=weight.new_tensor(alpha), unlabeled_weight=weight)

    def observe(self, logits: Tensor, labeled: View) -> None:
        """Let the equalizer, if there is one, measure the student's confidence on labeled images."""
        if self.equalizer is not None:
            self.equalizer.observe(logits.detach().softmax(dim=1), labeled["labels"])

    def zero_contrast(self) -> dict[str, Tensor]:
        """Return a loss of 0 during the warm start: distributed training needs a gradient of every parameter."""
        if not self.contrast_weight:
            return {}
        return dict(loss_contrast=0.0 * torch.stack([value.sum() for value in self.projection.parameters()]).sum())

    def mix_images(self, view: View, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mixed unlabeled images, the teacher's probabilities for them and their valid mask."""
        plain = view["inputs"], targets, view["valid"]
        if self.equalizer is not None:
            return self.equalizer.mix(*plain)
        if self.mix == "none":
            return plain
        chosen = torch.rand(1, device=targets.device) < self.mix_prob  # an `if` would synchronize
        images, targets, valid = map(torch.where, [chosen] * 3, mixed(self.mix, *plain), plain)
        return images, targets, valid

    @torch.no_grad()
    def teacher_logits(self, images: Tensor) -> Tensor:
        """Return the teacher's logits at the resolution of its features."""
        network = self.teacher.network
        return network.decode_head(network.extract_feat(images))

    def unsupervised_loss(self, logits: Tensor, targets: Tensor, reliable: Tensor) -> Tensor:
        """Return L_u.

        **Shape**: N x C x H x W twice and N x H x W bool -> scalar.
        """
        weights = reliable.float()
        if self.equalizer is not None:
            weights = weights * self.equalizer.weights(logits.detach().argmax(dim=1), targets.amax(dim=1))
        return self.distance(logits, targets, weights)  # Eq. (3)

    def project(self, features: Tensor, key_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's vectors z, of length 1, and the teacher's keys, of any.

        **Shape**: N x channels x h x w twice -> P x D twice.
        """
        vectors = F.normalize(self.projection(features), dim=1)
        with torch.no_grad():
            keys = self.key_projection.network(key_features)
        return rows(vectors), rows(keys)

    @torch.no_grad()
    def candidates(self, key_logits: Tensor, labels: Tensor, partition: Partition) -> tuple[Tensor, Tensor]:
        """Return the class that each pixel may be an anchor of, and the classes that it is a negative of.

        **Shape**: (N + M) x C x h x w, N x H x W and M x H x W each -> P and P x C.
        """
        size = key_logits.shape[-2:]
        probabilities = rows(key_logits.float().softmax(dim=1))
        has_label = labels != self.task.ignore_index
        pixels = flatten_at(size, Partition(labels, has_label, has_label), partition)
        anchors = anchor_classes(probabilities, pixels.labels, pixels.reliable, self.threshold)
        number = len(labels) * size.numel()
        return anchors, negative_classes(probabilities, pixels, labeled=number, ranks=self.ranks)

    def bare_passes(self, batch: Batch) -> list[Tensor]:
        images = torch.cat([batch[name]["inputs"] for name in ("labeled_weak", "unlabeled_strong")])
        with shared_features(self.student.decode_head) as features:
            outputs = head_outputs(self.student, images)
        with shared_features(self.teacher.network.decode_head) as key_features:
            self.teacher_logits(torch.cat((images, batch["unlabeled_weak"]["inputs"])))
        if not self.contrast_weight:
            return outputs
        vectors, _ = self.project(features[0], key_features[0][: len(images)])
        return [*outputs, vectors]

    def bench_parts(self, batch: Batch) -> dict[str, Callable[[], object]]:
        if not self.contrast_weight:
            return {}
        labels, valid = batch["labeled_weak"]["labels"], batch["unlabeled_strong"]["valid"]
        size = self.teacher_logits(batch["labeled_weak"]["inputs"][:1]).shape[1:]
        key_logits = torch.randn(len(labels) + len(valid), *size, device=valid.device)
        entropy = torch.rand(valid.shape, device=valid.device)
        pseudo_labels = torch.randint(size[0], valid.shape, device=valid.device)
        pixels = len(key_logits) * size[1:].numel()
        vectors, keys = F.normalize(torch.randn(2, pixels, self.contrast.dim, device=valid.device), dim=2)
        vectors.requires_grad_()

        def contrast() -> object:
            partition = partition_pixels(entropy, pseudo_labels, valid, alpha=self.alpha, reliability=self.reliability)
            anchors, negatives = self.candidates(key_logits, labels, partition)
            return torch.autograd.grad(self.contrast(vectors, keys, anchors, negatives), vectors)

        return {"contrast": contrast}


def rows(maps: Tensor) -> Tensor:
    """Return maps as one row for each pixel.

    **Shape**: N x C x H x W -> N H W x C.
    """
    return maps.movedim(1, -1).flatten(0, 2)
