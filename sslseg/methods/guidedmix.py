"""GuidedMix-Net: an unlabelled image's pseudo-mask is what remains of a mixture with a similar labelled image.

Tu, Huang, Ji, Zheng and Shao, GuidedMix-Net: Learning to Improve Pseudo Masks Using Labeled Images as Reference. The
authors' published program does other things; the paper is what is built here.

| paper | here | shape |
|---|---|---|
| x_l, y_l; x_u | ``images``, ``labeled``; ``others`` | N x 3 x H x W; M x 3 x H x W |
| Gamma_enc, pooled | ``vectors`` | (N + M) x D |
| argmin_l d(x_l, x_u), Eq. (3) | ``partners`` | M |
| lambda; its bound | ``lambdas``; ``lambda_max`` | M x 1 x 1 x 1 |
| M_l, M_u, M_mix | ``own``, ``direct``, ``mixed`` | N, M, M x C x H x W |
| M_{u-dec}, Eqs. (7), (8) | ``targets`` | M x C x H x W |
| omega_usup L_usup, Eqs. (9), (10) | ``loss_unlabeled``; ``unlabeled_weight`` | scalar |
| L_ce(M_l, y_l), L_cla, Eq. (11) | ``decode.loss_*``, ``loss_classifier`` | scalar |
| L_dec, Eq. (12) | ``loss_decoupling`` | scalar |

The network of the paper is the preset ``mitrans_*`` (``networks.mitrans``, ``networks.pyramid``); any other will do.

Three passes: x_l with x_u; x_mix without gradients, since M_{u-dec} is a target; the mixed labelled pairs of L_dec.
BatchNorm normalises each with its own statistics, and only the first pass, of the images that a model meets later, is
remembered in the running ones.

Choices where the paper is silent; those with a setting are switches. "Tried" is on another drawing of shapes than the
benchmarks', with networks that start from random weights:
- ``space``: whether probabilities or logits are subtracted and compared. Tried: with logits nearly all classes were lost.
- ``remainder``: what becomes of the difference; M_mix holds about 1 - lambda of M_u, so ``normalize`` makes it a
  distribution again. ``raw`` is Eqs. (7) and (8) as printed; tried: its squared distance from the truth is larger.
- The target is M_{u-dec}, as the text has it, and a constant. Tried: teaching the mixture by M_u instead, and a target with
  BatchNorm's running statistics; neither helped.
- ``labeled_decoupling``: Eq. (12) is printed with hard decoupling; ``None`` does as ``decoupling`` says. Lambdas of labelled
  pairs are drawn for themselves.
- ``constant``: in L_dec M_l and its partner's prediction are constants, which cross entropy teaches; only the mixture learns.
- ``distance``: features are compared ``pooled``, as the text says, or place by place (``map``), as Eq. (3) is printed.
- ``bound``: lambda is scaled to its range, or clipped. Each pair draws its own; alpha is not given, 1 is uniform.
- A partner is sought within a rank's batch. L_dec never pairs an image with itself.
- Eqs. (10) and (12) sum over classes and average over the pixels that count: not padding, nor what nobody could label.
- "First trained using labelled data": ``warmup``. L_cla is the binary cross entropy of each class, averaged.
- Pseudo-masks for a store mix with lambda in the middle of its range.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from sslseg.data.dataset import ImageDataset
from sslseg.errors import UserError
from sslseg.functional import decoupling as functional
from sslseg.functional.consistency import mean, sigmoid_rampup
from sslseg.inference import Predictor, Protocol
from sslseg.methods.base import Batch, SemiSegmentor
from sslseg.methods.guided import GuidedPredictor
from sslseg.networks.teacher import scores
from sslseg.registry import METHODS

TINY = 1e-12
CHOICES = dict(
    pairs=("similar", "random"),
    distance=("pooled", "map"),
    bound=functional.BOUNDS,
    decoupling=("soft", "hard"),
    labeled_decoupling=(None, "soft", "hard"),
    space=("probabilities", "logits"),
    remainder=functional.REMAINDERS,
)


@METHODS.register_module()
class GuidedMix(SemiSegmentor):
    """GuidedMix-Net.

    Args:
        pairs: ``similar`` or ``random`` (Table 2; Cityscapes).
        lambda_max: the bound of lambda, at most 0.5 (Tables 1, 6 and 8).
        decoupling: ``soft``, Eq. (8), or ``hard``, Eq. (7).
        unlabeled_weight: omega_usup once ramped up.
        decoupling_weight, classifier_weight: of L_dec and L_cla; 0 leaves them out.
        rampup: share of the training over which omega_usup grows.
        warmup: share of the training with labelled images only, unmixed.
        distance, alpha, bound, labeled_decoupling, space, remainder, constant: see the head of this file.
    """

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak",)}
    mixes: ClassVar[bool] = True

    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        pairs: str,
        distance: str,
        lambda_max: float,
        alpha: float,
        bound: str,
        decoupling: str,
        labeled_decoupling: str | None,
        space: str,
        remainder: str,
        constant: bool,
        unlabeled_weight: float,
        decoupling_weight: float,
        classifier_weight: float,
        rampup: float,
        warmup: float,
    ) -> None:
        super().__init__(segmentor=segmentor)
        self.pairs, self.distance, self.bound = pairs, distance, bound
        self.decoupling, self.labeled_decoupling = decoupling, labeled_decoupling
        self.space, self.remainder, self.constant = space, remainder, constant
        self.lambda_max, self.alpha = lambda_max, alpha
        self.unlabeled_weight, self.decoupling_weight = unlabeled_weight, decoupling_weight
        self.classifier_weight, self.rampup, self.warmup = classifier_weight, rampup, warmup
        self._check()
        if classifier_weight:
            self.classifier = nn.Linear(encoder_width(self.student), self.task.channels)

    def _check(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"method.{name} {getattr(self, name)!r} is unknown; use one of: {', '.join(map(str, known))}"
                )
        if not 0.0 <= self.lambda_max <= 0.5:
            raise UserError(
                f"method.lambda_max {self.lambda_max} is out of range: min(lambda, 1 - lambda) is at most 0.5;"
                " give 0 to 0.5 with --lambda-max"
            )
        if not self.alpha > 0:
            raise UserError(f"method.alpha {self.alpha} is no parameter of a Beta distribution; give a positive number")
        if (self.space, self.remainder) == ("logits", "normalize"):
            raise UserError(
                "method.remainder normalize needs method.space probabilities: logits have no sum; use raw or clamp"
            )

    def guided_predictor(self, protocol: Protocol, references: ImageDataset, *, number: int) -> Predictor:
        """Return what makes pseudo-masks out of mixtures with the most similar labelled images."""
        return GuidedPredictor(self, protocol, references, number=number)

    @property
    def middle_lambda(self) -> float:
        """The lambda of pseudo-masks for a store."""
        return self.lambda_max / 2.0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled = batch["labeled_weak"]
        images, labels = labeled["inputs"], labeled["labels"]
        number = len(images)
        begun = self.progress >= self.warmup
        unlabeled = batch["unlabeled_weak"] if begun else None
        losses, logits, features = self.supervise(labeled, unlabeled["inputs"] if unlabeled is not None else None)
        encoded = features[-1]
        if self.classifier_weight:
            truth = functional.present(labels, self.task.channels)
            loss = F.binary_cross_entropy_with_logits(self.classifier(pooled(encoded[:number])).float(), truth)
            losses["loss_classifier"] = self.classifier_weight * loss
        if unlabeled is None:
            return losses
        if min(number, len(unlabeled["inputs"])) < 2:
            raise UserError(
                "method guidedmix compares images within a batch, but a rank's has only one labelled or one unlabelled"
                " image; raise --batch-size"
            )
        vectors = (pooled(encoded) if self.distance == "pooled" else encoded.flatten(1)).detach().float()
        own_logits, direct_logits = logits.tensor_split((number,))
        own, direct = (
            self.predictions(own_logits.detach() if self.constant else own_logits),
            self.predictions(direct_logits),
        )
        losses["loss_unlabeled"] = self.guide(images, unlabeled, vectors, own, direct)
        if self.decoupling_weight:
            known = self.task.known(labeled)[:, 0]
            losses["loss_decoupling"] = self.decoupling_weight * self.separate(images, vectors[:number], own, known)
        return losses

    def guide(self, images: Tensor, unlabeled: dict[str, Any], vectors: Tensor, own: Tensor, direct: Tensor) -> Tensor:
        """Return omega_usup L_usup: unlabelled images learn what remains of their mixtures."""
        others, number = unlabeled["inputs"], len(images)
        if self.pairs == "similar":
            partners = functional.nearest(vectors[number:], vectors[:number])[:, 0]
        else:
            partners = functional.any_reference(len(others), number, device=images.device)
        with torch.no_grad():
            lambdas = self.draw(others)
            mixed = self.predict(functional.blend(images[partners], others, lambdas))
            targets = self.decoupled(mixed, own[partners], lambdas, self.decoupling)
        weight = self.unlabeled_weight * sigmoid_rampup(self.progress, self.rampup)
        return weight * squared_distance(targets, direct, unlabeled["valid"])  # Eq. (10)

    def separate(self, images: Tensor, vectors: Tensor, own: Tensor, known: Tensor) -> Tensor:
        """Return L_dec: the mixture of two labelled images without the one's mask is the other's."""
        if self.pairs == "similar":
            partners = functional.nearest_other(vectors)
        else:
            partners = functional.any_other(len(images), device=images.device)
        lambdas = self.draw(images)
        mixed = self.predict(functional.blend(images, images[partners], lambdas))
        decoupled = self.decoupled(mixed, own, lambdas, self.labeled_decoupling or self.decoupling)
        return squared_distance(decoupled, own[partners], known[partners])  # Eq. (12)

    def draw(self, images: Tensor) -> Tensor:
        """Return a lambda for each image."""
        return functional.draw_lambdas(
            len(images), alpha=self.alpha, largest=self.lambda_max, bound=self.bound, device=images.device
        )

    def predict(self, images: Tensor) -> Tensor:
        """Return predictions of mixed images.

        **Shape**: N x 3 x H x W -> N x C x H x W.
        """
        with unrecorded(self.student):
            features = self.student.extract_feat(images)  # Eq. (4)
            return self.predictions(scores(self.student, features, images.shape[-2:]))

    def predictions(self, logits: Tensor) -> Tensor:
        """Return what is subtracted and compared."""
        return self.task.activate(logits) if self.space == "probabilities" else logits

    def decoupled(self, mixed: Tensor, labeled: Tensor, lambdas: Tensor | float, decoupling: str) -> Tensor:
        """Return M_{u-dec} of predictions, by hard or soft decoupling.

        **Shape**: N x C x H x W twice, N x 1 x 1 x 1 -> N x C x H x W.
        """
        share = lambdas if decoupling == "soft" else 1.0
        return functional.decouple(mixed, labeled, share, remainder=self.remainder)

    def distribution(self, mixed: Tensor, labeled: Tensor, share: float) -> Tensor:
        """Return M_{u-dec} of predicted probabilities as probabilities: whatever remains, the classes' sum is 1.

        **Shape**: N x C x H x W twice -> N x C x H x W.
        """
        share = share if self.decoupling == "soft" else 1.0
        if self.space == "logits":
            # Up to a constant of each pixel, which softmax forgets, a logit is the logarithm of the probability.
            mixed, labeled = (values.clamp_min(TINY).log() for values in (mixed, labeled))
            return functional.decouple(mixed, labeled, share).softmax(dim=1)
        left = functional.decouple(mixed, labeled, share, remainder="clamp") + TINY
        return left / left.sum(dim=1, keepdim=True)


def encoder_width(segmentor: EncoderDecoder) -> int:
    """Return how many channels the last feature of a segmentor's encoder has."""
    was_training = segmentor.training
    with torch.no_grad():
        features = segmentor.eval().extract_feat(torch.zeros(1, 3, 64, 64))
    segmentor.train(was_training)
    return features[-1].shape[1]


def pooled(feature: Tensor) -> Tensor:
    """Return the mean over all places.

    **Shape**: N x D x h x w -> N x D.
    """
    return feature.mean(dim=(2, 3))


def squared_distance(first: Tensor, second: Tensor, counted: Tensor) -> Tensor:
    """Return the squared distance, summed over classes and averaged over the pixels that count.

    **Shape**: N x C x H x W twice, N x H x W bool -> scalar.
    """
    return mean(F.mse_loss(first, second, reduction="none").sum(dim=1), counted)


@contextlib.contextmanager
def unrecorded(network: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics as they are; a training pass is normalised with its own batch all the same."""
    recording = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats
    ]
    for module in recording:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in recording:
            module.track_running_stats = True
