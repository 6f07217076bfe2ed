"""Guided Collaborative Training: two models teach each other, guided by a detector of their flaws.

Ke, Qiu, Li, Yan and Lau, Guided Collaborative Training for Pixel-wise Semi-Supervised Learning, ECCV 2020.

| paper | here | shape |
|---|---|---|
| T^1, T^2 | ``student`` (left), ``right`` | |
| T^k(x) | ``predictions`` | N x C x H x W |
| F, F(x, T^k(x)) | ``detector``, ``flaws`` | N x 1 x H x W |
| the same, normalised and thresholded, Eq. (4) | ``guides`` | N x 1 x H x W |
| L_sup, Eq. (1) | ``left.*.loss_*``, ``right.*.loss_*`` | scalar |
| L_dc, Eq. (5); lambda_dc | ``loss_consistency``; ``consistency_weight`` | scalar |
| L_fc, Eqs. (6), (7); lambda_fc | ``loss_correction``; ``correction_weight`` | scalar |
| L_F, Eq. (3), with C | ``loss_detector`` | scalar |
| xi; eta | ``threshold``; ``rampup``, a share of the training | |

The paper's two steps use the same predictions, so one backward pass takes both: in the first the detector's weights are
constants, in the second the predictions are. Each part has its own optimiser.

Where the paper is silent: sums are means over pixels and channels without the halves, as in the authors' program, to
which the lambdas belong. A detector's map is clamped, blurred and stretched before Eq. (4) (``functional.flaw``); L_fc
takes it as it is. The halves are left out of L_F as well, which Adam does not notice. Both models see the same weak view;
their initial weights, and dropout, differ. Pixels that padding added, or whose truth is unknown, count in no constraint.
Left is validated and deployed; ``sslseg pseudolabel`` fuses both.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from sslseg.errors import UserError
from sslseg.functional.consistency import mean, sigmoid_rampup
from sslseg.functional.flaw import both_flawed, cleaned, learns_from_other, thresholded
from sslseg.inference import Predictor, Protocol
from sslseg.methods.base import Batch, SemiSegmentor, fixed
from sslseg.methods.fusion import FusedPredictor
from sslseg.networks.flaw_detector import FlawDetector
from sslseg.registry import METHODS
from sslseg.store.format import FLAW_MAPS, MODEL_MASKS

SIDES = ("left", "right")


def cosine_rampup(progress: float, length: float) -> float:
    """Return (1 - cos(pi t)) / 2, t growing from 0 to 1 over the first ``length`` of the training (Sec. 3.3)."""
    return 0.5 - 0.5 * math.cos(math.pi * min(progress / length, 1.0)) if length > 0 else 1.0


RAMPUPS = {"cosine": cosine_rampup, "sigmoid": sigmoid_rampup}


@METHODS.register_module()
class GCT(SemiSegmentor):
    """Two models and a flaw detector.

    Args:
        right: config of the second model; None: the same architecture as the first.
        detector: ``width`` and ``norm`` of the flaw detector.
        consistency_weight: lambda_dc; 0 leaves L_dc out (Fig. 5).
        correction_weight: lambda_fc; 0 leaves L_fc out. Without both, unlabelled images are not read.
        threshold: xi.
        rampup: share of the training over which L_dc grows.
        rampup_shape: ``cosine`` or ``sigmoid``.
    """

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak",)}
    maps: ClassVar[tuple[str, ...]] = (*FLAW_MAPS, *MODEL_MASKS)

    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        right: dict[str, Any] | None,
        detector: dict[str, Any],
        consistency_weight: float,
        correction_weight: float,
        threshold: float,
        rampup: float,
        rampup_shape: str,
    ) -> None:
        super().__init__(segmentor=segmentor)
        if rampup_shape not in RAMPUPS:
            raise UserError(f"method.rampup_shape {rampup_shape!r} is unknown; use one of: {', '.join(RAMPUPS)}")
        self.right: BaseModule = METHODS.build(right or segmentor)
        self.detector = FlawDetector(self.task.channels, **detector)
        self.consistency_weight, self.correction_weight = consistency_weight, correction_weight
        self.threshold, self.rampup, self.ramp = threshold, rampup, RAMPUPS[rampup_shape]
        if not self.collaborates:
            self.views = {"labeled": ("weak",)}  # type: ignore[misc]

    @property
    def collaborates(self) -> bool:
        return bool(self.consistency_weight or self.correction_weight)

    def predictor(self, protocol: Protocol) -> Predictor:
        return FusedPredictor(self.student, self.right, self.detector, protocol)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, unlabeled = batch["labeled_weak"], batch.get("unlabeled_weak")
        losses: dict[str, Tensor] = {}
        predictions: list[Tensor] = []
        for side, model in zip(SIDES, (self.student, self.right), strict=True):
            others = None if unlabeled is None else unlabeled["inputs"]
            own, logits, _ = self.supervise(labeled, others, model)
            losses |= {f"{side}.{name}": value for name, value in own.items()}  # Eq. (1)
            predictions.append(self.task.activate(logits))
        if unlabeled is not None:
            images = torch.cat((labeled["inputs"], unlabeled["inputs"]))
            counted = torch.cat((self.task.known(labeled), unlabeled["valid"][:, None]))
            losses |= self.collaborate(images, predictions, counted)  # Eq. (2)
        return losses | dict(loss_detector=self.detect(labeled, predictions))  # Eq. (3)

    def collaborate(self, images: Tensor, predictions: list[Tensor], counted: Tensor) -> dict[str, Tensor]:
        """Return L_dc and L_fc of both models together, weighted.

        **Shape**: N x 3 x H x W, two of N x C x H x W, N x 1 x H x W bool -> scalars.
        """
        losses: dict[str, Tensor] = {}
        # L_fc's gradient passes through the detector to the predictions.
        with fixed(self.detector), torch.set_grad_enabled(bool(self.correction_weight)):
            flaws = self.detector(images, torch.cat(predictions)).chunk(2)
        maps = [cleaned(flaw.detach()) for flaw in flaws]
        if self.consistency_weight:
            guides = [thresholded(flaw, self.threshold) for flaw in maps]  # Eq. (4)
            weight = self.consistency_weight * self.ramp(self.progress, self.rampup)
            parts = []
            for own, other in ((0, 1), (1, 0)):  # Eq. (5)
                learned = learns_from_other(guides[own], guides[other])
                squares = F.mse_loss(predictions[own], predictions[other].detach(), reduction="none")
                distance = squares.mean(dim=1, keepdim=True)
                parts.append(mean(distance * learned, counted))
            losses["loss_consistency"] = weight * (parts[0] + parts[1])
        if self.correction_weight:
            wrong = both_flawed(maps[0], maps[1], self.threshold)  # Eq. (7)
            both = flaws[0].square() + flaws[1].square()
            losses["loss_correction"] = self.correction_weight * mean(both * wrong, counted)  # Eq. (6)
        return losses

    def detect(self, labeled: dict[str, Any], predictions: list[Tensor]) -> Tensor:
        """Return L_F, averaged over both models' predictions of the labelled images."""
        images = labeled["inputs"]
        own = torch.cat([prediction[: len(images)].detach() for prediction in predictions])
        both = dict(labels=labeled["labels"].repeat(2, 1, 1))
        return self.detector.loss(images, own, self.task.flaws(own, both), self.task.known(both))
