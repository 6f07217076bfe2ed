"""Guided Collaborative Training: two models teach each other, guided by a detector of their flaws.

Ke, Qiu, Li, Yan and Lau, Guided Collaborative Training for Pixel-wise Semi-Supervised Learning, ECCV 2020.

| paper | here | shape |
|---|---|---|
| T^1, T^2 | ``left`` (the student), ``right`` | |
| T^k(x) | ``predictions`` | N x C x H x W |
| F, F(x, T^k(x)) | ``detector``, ``flaws`` | N x 1 x H x W |
| the same, normalized and thresholded, Eq. (4) | ``guides`` | N x 1 x H x W |
| L_sup, Eq. (1) | ``left.*.loss_*``, ``right.*.loss_*`` | scalar |
| L_dc, Eq. (5); lambda_dc | ``loss_consistency``; ``consistency_weight`` | scalar |
| L_fc, Eqs. (6), (7); lambda_fc | ``loss_correction``; ``correction_weight`` | scalar |
| L_F, Eq. (3), with C | ``loss_detector`` | scalar |
| xi; eta | ``threshold``; ``rampup`` | |

Both steps of the paper use the same predictions, so one backward pass serves both: in the first the detector is frozen, in
the second the predictions are constants. Each part has its own optimizer.

Where the paper is silent: sums are means over pixels and channels without the halves, as in the official implementation,
to which the lambdas belong. A detector's map is clamped, blurred and stretched before Eq. (4) (``flaw_maps.clean_up``); L_fc
takes it unchanged. The halves are left out of L_F as well, which makes no difference to Adam. Both models see the same weak
view; their initial weights, and dropout, differ. Padding, and pixels without a label, are ignored by every constraint.
Not in the paper: with ``detector_view="strong"``, F learns C(|T^k(A x_l) - B y|) of a strong view A x_l, B moving the labels along:
the models have learned the labeled images by heart, and F is to judge them on others. With ``cross_fit``, F learns from images
that a model has not learned at all: left sees no labels of one half, right none of the other; L_dc carries them across. Afterwards
both learn all labels, and F's weights stay as they are.
Left is validated and exported; ``sslseg pseudolabel`` fuses both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from sslseg.functional.consistency import mean
from sslseg.functional.schedule import Duration, duration, sigmoid_rampup
from sslseg.inference import Predictor
from sslseg.methods.base import Batch, SemiSegmentor, View, data_sample, frozen
from sslseg.methods.gct.flaw_detector import FlawDetector
from sslseg.methods.gct.flaw_maps import both_flawed, clean_up, exceeding_to_one, flaw_target, learns_from_other
from sslseg.methods.gct.predictor import SIDES, FusedPredictor
from sslseg.networks.logits import head_outputs, logits_of
from sslseg.registry import MODELS
from sslseg.settings import DEFAULTS, checked


def cosine_rampup(progress: float, length: float) -> float:
    """Return (1 - cos(pi t)) / 2, t growing from 0 to 1 over the first ``length`` of training (Sec. 3.3)."""
    return 0.5 - 0.5 * math.cos(math.pi * min(progress / length, 1.0)) if length > 0 else 1.0


RAMPUPS = {"cosine": cosine_rampup, "sigmoid": sigmoid_rampup}


@MODELS.register_module()
class GCT(SemiSegmentor):
    """Two models and a flaw detector."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak",)}
    segmentors: ClassVar[tuple[str, ...]] = ("right",)
    optimizers: ClassVar[dict[str, dict[str, Any]]] = {"detector": dict(type="Adam", lr=1e-4, betas=(0.9, 0.99))}
    predictors: ClassVar[dict[str, type[Predictor]]] = {"fused": FusedPredictor, "left": Predictor}
    refiners: ClassVar[tuple[str, ...]] = ("self-training", "three-stage")
    pipeline: ClassVar[tuple[str, ...]] = ("train", "pseudolabel", 'refine --keep "flaw<0.6"', "eval")

    @checked()
    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        right: Annotated[
            dict[str, Any] | None,
            "The second model: a preset's name, the path of an mmseg config, or a model config; None: the first's architecture.",
        ] = None,
        detector: Annotated[Mapping[str, Any], FlawDetector, "Settings of the flaw detector."] = DEFAULTS,
        consistency_weight: Annotated[float, "lambda_dc; 0 leaves L_dc out (Fig. 5)."] = 100.0,
        correction_weight: Annotated[
            float, "lambda_fc; 0 leaves L_fc out. Without both, unlabeled images are not read."
        ] = 1.0,
        threshold: Annotated[float, "xi: a flaw above it counts as a complete flaw."] = 0.6,
        rampup: Annotated[Duration, "Duration over which L_dc grows."] = "3 epochs",
        rampup_shape: Annotated[Literal["cosine", "sigmoid"], "How L_dc grows."] = "cosine",
        detector_view: Annotated[
            Literal["weak", "strong"],
            "Whose predictions the detector learns from: those of the labeled images as the models learn them, or (not in the"
            " paper) of their strong view, where the models err as on unlabeled images.",
        ] = "weak",
        cross_fit: Annotated[
            Duration,
            "For how long each model learns the labels of one half of the labeled images only and the detector from its errors on"
            " the other half; afterwards both learn all labels and the detector is frozen (not in the paper). 0: never.",
        ] = 0.0,
    ) -> None:
        super().__init__(segmentor=segmentor)
        self.right: BaseModule = MODELS.build(right or segmentor)
        self.detector = FlawDetector(self.task.channels, **detector)
        self.consistency_weight, self.correction_weight = consistency_weight, correction_weight
        self.threshold = threshold
        self.rampup, self.ramp = duration(rampup, name="rampup"), RAMPUPS[rampup_shape]
        self.detector_view, self.cross_fit = detector_view, duration(cross_fit, name="cross_fit")
        self.kept: list[Tensor] = []  # weights of a frozen detector, during an iteration
        views: dict[str, tuple[str, ...]] = {"labeled": ("weak",) if detector_view == "weak" else ("weak", "strong")}
        if consistency_weight or correction_weight:
            views["unlabeled"] = ("weak",)
        self.views = views  # type: ignore[misc]

    @property
    def left(self) -> EncoderDecoder:
        return self.student

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, unlabeled = batch["labeled_weak"], batch.get("unlabeled_weak")
        losses: dict[str, Tensor] = {}
        predictions: list[Tensor] = []
        for side, model, taught in zip(SIDES, (self.left, self.right), self.halves(labeled), strict=True):
            others = None if unlabeled is None else unlabeled["inputs"]
            own, logits, _ = self.supervise(taught, others, model)
            losses |= {f"{side}.{name}": value for name, value in own.items()}  # Eq. (1)
            predictions.append(self.task.activate(logits))
        if unlabeled is not None:
            images = torch.cat((labeled["inputs"], unlabeled["inputs"]))
            valid_mask = torch.cat((self.task.valid_mask(labeled), unlabeled["valid"][:, None]))
            losses |= self.collaborate(images, predictions, valid_mask)  # Eq. (2)
        if self.detector_is_frozen:  # distributed training waits for a gradient of every parameter: here 0
            nothing = torch.stack([0.0 * parameter.sum() for parameter in self.detector.parameters()])
            return losses | dict(loss_detector=nothing.sum())
        if self.detector_view == "strong":
            labeled = batch["labeled_strong"]
            predictions = [self.predict(model, labeled["inputs"]) for model in (self.left, self.right)]
        return losses | dict(loss_detector=self.detect(labeled, predictions))  # Eq. (3)

    @property
    def held_out(self) -> bool:
        """Whether each model still learns from its own half of the labeled images alone (``cross_fit``)."""
        return self.progress < self.fraction(self.cross_fit)

    @property
    def detector_is_frozen(self) -> bool:
        return bool(self.cross_fit) and not self.held_out

    def begin_iteration(self, iteration: int) -> None:
        super().begin_iteration(iteration)
        self.kept = [parameter.detach().clone() for parameter in self.detector.parameters() if self.detector_is_frozen]

    @torch.no_grad()
    def after_iteration(self) -> None:
        """Undo what momentum and weight decay have done to a frozen detector, whose gradients were 0."""
        super().after_iteration()
        for parameter, value in zip(
            self.detector.parameters(), self.kept, strict=False
        ):  # none is kept of a learning one
            parameter.copy_(value)

    def halves(self, labeled: View) -> list[View]:
        """Return the labels of images with even and with odd places in their stream, the others ignored; later all, twice."""
        if not self.held_out:
            return [labeled, labeled]
        found = []
        for parity in (0, 1):
            labels = labeled["labels"].masked_fill(
                (labeled["index"] % 2 != parity)[:, None, None], self.task.ignore_index
            )
            found.append(labeled | dict(labels=labels, data_samples=list(map(data_sample, labels))))
        return found

    @torch.no_grad()
    def predict(self, model: EncoderDecoder, images: Tensor) -> Tensor:
        """Return T^k(x) in evaluation mode: running statistics are those of weak views.

        **Shape**: N x 3 x H x W -> N x C x H x W.
        """
        was_training = model.training
        model.eval()
        logits = logits_of(model, model.extract_feat(images), images.shape[-2:])
        model.train(was_training)
        return self.task.activate(logits)

    def collaborate(self, images: Tensor, predictions: list[Tensor], valid_mask: Tensor) -> dict[str, Tensor]:
        """Return L_dc and L_fc of both models together, weighted.

        **Shape**: N x 3 x H x W, two of N x C x H x W, N x 1 x H x W bool -> scalars.
        """
        losses: dict[str, Tensor] = {}
        # L_fc's gradient passes through the detector to the predictions.
        with frozen(self.detector), torch.set_grad_enabled(bool(self.correction_weight)):
            flaws = self.detector(images, torch.cat(predictions)).chunk(2)
        maps = clean_up(torch.cat(flaws, dim=1), valid_mask).split(1, dim=1)
        if self.consistency_weight:
            guides = [exceeding_to_one(flaw, self.threshold) for flaw in maps]  # Eq. (4)
            weight = self.consistency_weight * self.ramp(self.progress, self.fraction(self.rampup))
            parts = []
            for own, other in ((0, 1), (1, 0)):  # Eq. (5)
                learned = learns_from_other(guides[own], guides[other])
                squares = F.mse_loss(predictions[own], predictions[other].detach(), reduction="none")
                distance = squares.mean(dim=1, keepdim=True)
                parts.append(mean(distance * learned, valid_mask))
            losses["loss_consistency"] = weight * (parts[0] + parts[1])
        if self.correction_weight:
            wrong = both_flawed(maps[0], maps[1], self.threshold)  # Eq. (7)
            both = flaws[0].square() + flaws[1].square()
            losses["loss_correction"] = self.correction_weight * mean(both * wrong, valid_mask)  # Eq. (6)
        return losses

    def detect(self, labeled: View, predictions: list[Tensor]) -> Tensor:
        """Return L_F, averaged over both models' predictions of a view of the labeled images, the first in ``predictions``."""
        images = labeled["inputs"]
        own = torch.cat([prediction[: len(images)].detach() for prediction in predictions])
        # Of both halves the one that the model does not learn from.
        both = dict(labels=torch.cat([view["labels"] for view in reversed(self.halves(labeled))]))
        valid_mask = self.task.valid_mask(both)
        return self.detector.loss(images, own, flaw_target(own, both["labels"], valid_mask), valid_mask)

    def bare_passes(self, batch: Batch) -> list[Tensor]:
        images = torch.cat([batch[f"{stream}_weak"]["inputs"] for stream in self.views])
        outputs = [*head_outputs(self.left, images), *head_outputs(self.right, images)]
        if self.detector_view == "strong":
            self.predict(self.left, batch["labeled_strong"]["inputs"])
            self.predict(self.right, batch["labeled_strong"]["inputs"])
        # The detector sees both predictions of all images, with gradients to these; then those of the labeled part.
        inputs = images.new_zeros(2 * len(images), 3 + self.task.channels, *images.shape[-2:]).requires_grad_()
        with frozen(self.detector):
            flaws = self.detector.layers(inputs)
        return [*outputs, flaws, self.detector.layers(inputs[: 2 * len(batch["labeled_weak"]["inputs"])].detach())]

    def bench_parts(self, batch: Batch) -> dict[str, Callable[[], object]]:
        both = dict(labels=batch["labeled_weak"]["labels"].repeat(2, 1, 1))
        valid_mask = self.task.valid_mask(both)
        predictions = valid_mask.new_full(
            (len(valid_mask), self.task.channels, *valid_mask.shape[2:]), 0.1, dtype=torch.float
        )
        maps = predictions[:, :1].unflatten(0, (2, -1))[:, :, 0].transpose(0, 1).repeat(2, 1, 1, 1)
        return {
            "C": lambda: flaw_target(predictions, both["labels"], valid_mask),
            "clean-up": lambda: clean_up(maps, valid_mask),
        }
