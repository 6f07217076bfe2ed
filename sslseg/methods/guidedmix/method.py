"""GuidedMix-Net: the pseudo-mask of an unlabeled image is decoupled from its mixture with a similar labeled image.

Tu, Huang, Ji, Zheng and Shao, GuidedMix-Net: Learning to Improve Pseudo Masks Using Labeled Images as Reference. This
follows the paper; the official implementation does other things.

| paper | here | shape |
|---|---|---|
| x_l, y_l; x_u | ``images``, ``labels``; ``others`` | N x 3 x H x W, N x H x W; M x 3 x H x W |
| Gamma_enc, after global average pooling | ``vectors`` | (N + M) x D |
| argmin_l d(x_l, x_u), Eq. (3) | ``partners`` | M |
| lambda; its bound | ``lambdas``; ``lambda_max`` | M x 1 x 1 x 1 |
| M_l, M_u, M_mix | ``own``, ``direct``, ``mixed`` | N, M, M x C x H x W |
| M_{u-dec}, Eqs. (7), (8) | ``targets`` | M x C x H x W |
| omega_usup L_usup, Eqs. (9), (10) | ``loss_unlabeled``; ``unlabeled_weight`` | scalar |
| L_ce(M_l, y_l), L_cla, Eq. (11) | ``decode.loss_*``, ``loss_classifier`` | scalar |
| L_dec, Eq. (12) | ``loss_decoupling`` | scalar |

Passes: x_l with x_u; x_mix without gradients, since the text makes M_{u-dec} a target; the mixed labeled pairs of L_dec.
Only the first updates running statistics. The others, and M_l of a pass of its own, use these statistics and no dropout;
``target="train"`` normalizes them with their own batch, with dropout, and takes M_l from the first pass.

Where the paper is silent: M_mix holds about 1 - lambda of M_u, so ``renormalize`` makes soft decoupling's difference a
distribution again; M_mix - M_l sums to 0 and stays as it is. Eq. (12) is printed with hard decoupling, Eq. (3) without
pooling. Every pair, also of labeled images, samples its own lambda. Partners come from the batch of a rank; L_dec never
pairs an image with itself. Eqs. (10) and (12) sum over classes and average over valid pixels. L_cla is a mean binary
cross entropy. Stored pseudo-masks use half of lambda's bound. The presets ``mitrans_*`` are the paper's network
(``mitrans``, ``pyramid``); any other will do.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslseg.errors import UserError
from sslseg.functional.consistency import mean
from sslseg.functional.schedule import Duration, duration, sigmoid_rampup
from sslseg.inference import Predictor
from sslseg.methods.base import Batch, SemiSegmentor, View
from sslseg.methods.guidedmix import decoupling as functions
from sslseg.methods.guidedmix.decoupling import global_average_pool
from sslseg.methods.guidedmix.modes import evaluation_mode, freeze_running_stats
from sslseg.methods.guidedmix.predictor import DecoupledPredictor
from sslseg.networks.logits import encoder_width, head_outputs, logits_of
from sslseg.registry import MODELS
from sslseg.settings import checked

TINY = 1e-12
ROUNDING = 1e-9  # of sums of durations


@MODELS.register_module()
class GuidedMix(SemiSegmentor):
    """GuidedMix-Net."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak",)}
    predictors: ClassVar[dict[str, type[Predictor]]] = {"direct": Predictor, "decoupled": DecoupledPredictor}
    pipeline: ClassVar[tuple[str, ...]] = ("train", "pseudolabel --predictor decoupled", "eval")
    old_settings: ClassVar[dict[str, Any]] = {"constant": "detach_targets", "remainder": "renormalize"}

    @checked()
    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        pairs: Annotated[
            Literal["similar", "random"], "Partners: the most similar labeled image, or any (Table 2; Cityscapes)."
        ] = "similar",
        distance: Annotated[
            Literal["pooled", "map"],
            "Compare features after global average pooling (the text), or position by position (Eq. (3) as printed).",
        ] = "pooled",
        lambda_max: Annotated[float, "Bound of lambda, at most 0.5 (Tables 1, 6 and 8)."] = 0.5,
        alpha: Annotated[float, "Lambda is sampled from Beta(alpha, alpha); 1 is uniform."] = 1.0,
        mix_prob: Annotated[
            float, "Probability that a pair is mixed; else lambda is 0. The official implementation mixes with 0.5."
        ] = 1.0,
        bound: Annotated[Literal["scale", "clip"], "Lambda is scaled to its range, or clamped."] = "scale",
        decoupling: Annotated[
            Literal["soft", "hard"], "M_mix - lambda M_l, Eq. (8), or M_mix - M_l, Eq. (7) (Table 2)."
        ] = "soft",
        labeled_decoupling: Annotated[
            Literal["soft", "hard", None], "Decoupling in L_dec, printed as hard in Eq. (12); None: as `decoupling`."
        ] = None,
        target: Annotated[
            Literal["eval", "train"],
            "M_mix and M_l with BatchNorm's running statistics and without dropout, or with those of the batch and dropout.",
        ] = "eval",
        space: Annotated[Literal["probabilities", "logits"], "What is subtracted and compared."] = "probabilities",
        renormalize: Annotated[
            Literal["raw", "clamp", "normalize"],
            "The difference as it is, without negative values, or also with a sum of 1 over classes; this last one is"
            " raw in hard decoupling.",
        ] = "normalize",
        detach_targets: Annotated[
            bool, "In L_dec only the prediction of the mixture learns, not M_l and the partner's prediction."
        ] = True,
        unlabeled_weight: Annotated[float, "omega_usup once ramped up."] = 1.0,
        decoupling_weight: Annotated[float, "Weight of L_dec; 0 leaves it out."] = 1.0,
        classifier_weight: Annotated[float, "Weight of L_cla; 0 leaves the classifier out."] = 1.0,
        warmup: Annotated[Duration, "Duration of training on labeled images only, unmixed; then L_dec begins."] = 0.05,
        decoupling_warmup: Annotated[Duration, "Duration of L_dec without L_usup, after `warmup`."] = 0.0,
        rampup: Annotated[Duration, "Duration over which omega_usup grows, after both warm-ups."] = 0.1,
    ) -> None:
        super().__init__(segmentor=segmentor)
        self.pairs, self.distance, self.bound = pairs, distance, bound
        self.decoupling, self.labeled_decoupling = decoupling, labeled_decoupling or decoupling
        self.target, self.space, self.renormalize, self.detach_targets = target, space, renormalize, detach_targets
        self.lambda_max, self.alpha, self.mix_prob = lambda_max, alpha, mix_prob
        self.unlabeled_weight, self.decoupling_weight = unlabeled_weight, decoupling_weight
        self.classifier_weight = classifier_weight
        self.warmup, self.rampup = duration(warmup, name="warmup"), duration(rampup, name="rampup")
        self.decoupling_warmup = duration(decoupling_warmup, name="decoupling_warmup")
        self._check()
        if pairs == "similar" and not classifier_weight:
            self.messages.append(
                "method.pairs is similar, but method.classifier_weight 0 leaves the paper's classifier out: nothing teaches"
                " the compared features which classes an image contains"
            )
        if renormalize == "normalize" and "hard" in (self.decoupling, self.labeled_decoupling):
            self.messages.append("method.renormalize is raw in hard decoupling: M_mix - M_l sums to 0 over classes")
        if classifier_weight:
            self.classifier = nn.Linear(encoder_width(self.student), self.task.channels)

    def _check(self) -> None:
        if not 0.0 <= self.lambda_max <= 0.5:
            raise UserError(
                f"method.lambda_max {self.lambda_max} is out of range: min(lambda, 1 - lambda) is at most 0.5;"
                " give 0 to 0.5"
            )
        if not 0.0 <= self.mix_prob <= 1.0:
            raise UserError(f"method.mix_prob {self.mix_prob} is not a probability; give 0 to 1")
        if not self.alpha > 0:
            raise UserError(
                f"method.alpha {self.alpha} is not a valid parameter of a Beta distribution; give a positive number"
            )
        if (self.space, self.renormalize) == ("logits", "normalize"):
            raise UserError(
                "method.renormalize normalize needs method.space probabilities: logits have no sum; use raw or clamp"
            )

    @property
    def middle_lambda(self) -> float:
        """The lambda of pseudo-masks for a store."""
        return self.lambda_max / 2.0

    def has_passed(self, *durations: float) -> bool:
        """Return whether these durations, one after the other, are over."""
        return self.progress + ROUNDING >= sum(map(self.fraction, durations))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, unlabeled = batch["labeled_weak"], batch["unlabeled_weak"]
        images, number = labeled["inputs"], len(labeled["inputs"])
        if min(number, len(unlabeled["inputs"])) < 2:
            raise UserError(
                "method guidedmix compares images within a batch, but a rank's has only one labeled or one unlabeled"
                " image; raise --batch-size"
            )
        learns_unlabeled = self.has_passed(self.warmup, self.decoupling_warmup)
        learns_decoupling = bool(self.decoupling_weight) and self.has_passed(self.warmup)
        losses, logits, features = self.supervise(labeled, unlabeled["inputs"] if learns_unlabeled else None)
        encoded = features[-1]
        if self.classifier_weight:
            loss = self.classifier_loss(encoded[:number], labeled["labels"])
            losses["loss_classifier"] = self.classifier_weight * loss
        if not (learns_unlabeled or learns_decoupling):
            return losses
        vectors = global_average_pool(encoded) if self.distance == "pooled" else encoded.flatten(1)
        vectors = vectors.detach().float()
        own = self.own_predictions(images, logits[:number])
        if learns_unlabeled:
            loss = self.unlabeled_loss(images, unlabeled, vectors, own, self.predictions(logits[number:]))
            losses["loss_unlabeled"] = self.omega() * loss  # Eq. (9)
        if learns_decoupling:
            valid_mask = self.task.valid_mask(labeled)[:, 0]
            loss = self.decoupling_loss(images, vectors[:number], own, valid_mask)
            losses["loss_decoupling"] = self.decoupling_weight * loss
        return losses

    def omega(self) -> float:
        """Return omega_usup of this iteration."""
        start = self.fraction(self.warmup) + self.fraction(self.decoupling_warmup)
        return self.unlabeled_weight * sigmoid_rampup(self.progress - start, self.fraction(self.rampup))

    def classifier_loss(self, encoded: Tensor, labels: Tensor) -> Tensor:
        """Return L_cla, Eq. (11)."""
        truth = functions.image_level_labels(labels, self.task.channels)
        logits = self.classifier(global_average_pool(encoded)).float()
        return F.binary_cross_entropy_with_logits(logits, truth)

    def unlabeled_loss(self, images: Tensor, unlabeled: View, vectors: Tensor, own: Tensor, direct: Tensor) -> Tensor:
        """Return L_usup: the direct prediction learns from the mask that is decoupled from the mixture."""
        others, number = unlabeled["inputs"], len(images)
        if self.pairs == "similar":
            partners = functions.nearest(vectors[number:], vectors[:number])[:, 0]
        else:
            partners = functions.random_reference(len(others), number, device=images.device)
        with torch.no_grad():
            lambdas = self.sample_lambdas(others)
            mixed = self.predict(functions.blend(images[partners], others, lambdas))
            targets = self.decoupled(mixed, own[partners], lambdas, self.decoupling)
        return squared_distance(targets, direct, unlabeled["valid"])  # Eq. (10)

    def decoupling_loss(self, images: Tensor, vectors: Tensor, own: Tensor, valid_mask: Tensor) -> Tensor:
        """Return L_dec: from the mixture of two labeled images, the partner's mask remains without the image's own."""
        if self.pairs == "similar":
            partners = functions.nearest_other(vectors)
        else:
            partners = functions.random_other(len(images), device=images.device)
        lambdas = self.sample_lambdas(images)
        mixed = self.predict(functions.blend(images, images[partners], lambdas))
        decoupled = self.decoupled(mixed, own, lambdas, self.labeled_decoupling)
        return squared_distance(decoupled, own[partners], valid_mask[partners])  # Eq. (12)

    def sample_lambdas(self, images: Tensor) -> Tensor:
        """Return a lambda for each image."""
        return functions.sample_lambdas(
            len(images),
            alpha=self.alpha,
            largest=self.lambda_max,
            bound=self.bound,
            mix_prob=self.mix_prob,
            device=images.device,
        )

    def own_predictions(self, images: Tensor, logits: Tensor) -> Tensor:
        """Return M_l, of the training pass's logits where ``target`` says so.

        **Shape**: N x 3 x H x W and N x C x H x W -> N x C x H x W.
        """
        if self.target == "train":
            return self.predictions(logits.detach() if self.detach_targets else logits)
        with torch.set_grad_enabled(not self.detach_targets):
            return self.predict(images)

    def predict(self, images: Tensor) -> Tensor:
        """Return predictions in the mode of ``target``, which leave BatchNorm's running statistics as they are.

        **Shape**: N x 3 x H x W -> N x C x H x W.
        """
        with evaluation_mode(self.student) if self.target == "eval" else freeze_running_stats(self.student):
            features = self.student.extract_feat(images)  # Eq. (4)
            return self.predictions(logits_of(self.student, features, images.shape[-2:]))

    def predictions(self, logits: Tensor) -> Tensor:
        """Return what is subtracted and compared."""
        return self.task.activate(logits) if self.space == "probabilities" else logits

    def decoupled(self, mixed: Tensor, labeled: Tensor, lambdas: Tensor | float, decoupling: str) -> Tensor:
        """Return M_{u-dec} of predictions, by hard or soft decoupling.

        **Shape**: N x C x H x W twice, N x 1 x 1 x 1 -> N x C x H x W.
        """
        hard = decoupling == "hard"
        renormalize = "raw" if hard and self.renormalize == "normalize" else self.renormalize
        weight = lambdas > 0 if hard else lambdas  # unmixed, an image has nothing of the other to subtract
        return functions.decouple(mixed, labeled, weight, renormalize=renormalize)

    def decoupled_probabilities(self, mixed: Tensor, labeled: Tensor, weight: float) -> Tensor:
        """Return M_{u-dec} of probabilities as probabilities: with any ``renormalize`` the sum over classes is 1.

        **Shape**: N x C x H x W twice -> N x C x H x W.
        """
        hard = self.decoupling == "hard"
        weight = weight > 0 if hard else weight
        if self.space == "logits":
            # A logit is the logarithm of the probability, up to a constant of each pixel, which softmax cancels.
            mixed, labeled = (values.clamp_min(TINY).log() for values in (mixed, labeled))
            return functions.decouple(mixed, labeled, weight).softmax(dim=1)
        difference = functions.decouple(mixed, labeled, weight, renormalize="clamp")
        if hard:
            return functions.spread_remainder(difference)
        return (difference + TINY) / (difference + TINY).sum(dim=1, keepdim=True)

    def bare_passes(self, batch: Batch) -> list[Tensor]:
        labeled, unlabeled = batch["labeled_weak"]["inputs"], batch["unlabeled_weak"]["inputs"]
        outputs = head_outputs(self.student, torch.cat((labeled, unlabeled)))
        with torch.no_grad():  # the mixtures of L_usup, and M_l
            unchanging = [unlabeled, labeled] if self.target == "eval" else [unlabeled]
            self.student.decode_head(self.student.extract_feat(torch.cat(unchanging)))
        outputs += head_outputs(self.student, labeled)  # the mixtures of L_dec
        if self.classifier_weight:
            outputs.append(self.classifier(labeled.new_zeros(2, self.classifier.in_features)))
        return outputs


def squared_distance(first: Tensor, second: Tensor, valid_mask: Tensor) -> Tensor:
    """Return the squared distance, summed over classes and averaged over the valid pixels.

    **Shape**: N x C x H x W twice, N x H x W bool -> scalar.
    """
    return mean(F.mse_loss(first, second, reduction="none").sum(dim=1), valid_mask)
