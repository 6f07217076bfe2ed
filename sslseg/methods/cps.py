"""Cross Pseudo Supervision: two networks, initialized differently, learn each other's most probable classes.

Chen, Yuan, Zeng and Wang, Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision, CVPR 2021 (arXiv 2106.01226), Sec. 3.

| paper | here | shape |
|---|---|---|
| f(theta_1), f(theta_2) | ``left`` (the student), ``right`` | |
| P_1, P_2 | ``predictions`` | N x C x H x W |
| Y_1, Y_2: argmax P_1, argmax P_2 | ``labels`` | N x H x W |
| L_s | ``left.*.loss_*`` + ``right.*.loss_*`` | scalar |
| L_cps = CE(P_1, Y_2) + CE(P_2, Y_1) | ``loss_cross`` / weight | scalar |
| L = L_s + lambda L_cps | ``loss`` | scalar |
| the mask of CutMix | ``~kept`` | N x 1 x H x W |

Without mixing, L_cps is on labeled and unlabeled images. With CutMix it is on mixed unlabeled ones only: Y_k are predicted for each
image before mixing, and mixed as the images are.

BatchNorm: each network passes labeled and (mixed) unlabeled images together, where the official implementation passes them one after the
other. With CutMix, Y_k come from a pass of their own before that, without gradients but, as in the official implementation, in training
mode: normalized by the batch's own statistics, and moving the running ones, which thus follow unmixed images as much as mixed ones.

Other choices: L_cps is one mean over the pixels of labeled and unlabeled images, as in the official implementation, to which the weights
belong; the paper adds a mean of each. Padding, and labeled pixels without a label, are left out of it; the official one counts them.
CutMix partners are other images of the batch: the official implementation reads one order of the images twice, and mostly mixes an image
with another crop of itself. Ours: ``rampup``, unlike networks, and a predictor that averages both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from mmengine.model import BaseModule
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from sslseg.functional.consistency import cross_entropy, mean
from sslseg.functional.mixing import check_partners, overlaid_rectangles, paste
from sslseg.functional.schedule import Duration, duration, sigmoid_rampup
from sslseg.inference import Predictor, Protocol
from sslseg.methods.acceptance import Acceptance
from sslseg.methods.base import Batch, SemiSegmentor
from sslseg.networks.logits import head_outputs, logits_of
from sslseg.registry import MODELS
from sslseg.settings import checked

SIDES = ("left", "right")


class AveragedPredictor(Predictor):
    """Predict with the mean of both networks' probabilities."""

    def __init__(self, left: EncoderDecoder, right: EncoderDecoder, protocol: Protocol) -> None:
        self.model: Any = torch.nn.ModuleList((left, right))
        self.protocol = protocol
        self.sides = [Predictor(left, protocol), Predictor(right, protocol)]

    @classmethod
    def of(cls, method: CPS, protocol: Protocol) -> AveragedPredictor:
        return cls(method.left, method.right, protocol)

    def predict_batch(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        one, other = (predictor.predict_batch(images)[1] for predictor in self.sides)
        probabilities = 0.5 * (one + other)
        return probabilities.max(dim=1).indices, probabilities, {}


@MODELS.register_module()
class CPS(SemiSegmentor):
    """Two networks that label images for each other."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak",)}
    segmentors: ClassVar[tuple[str, ...]] = ("right",)
    predictors: ClassVar[dict[str, type[Predictor]]] = {"left": Predictor, "average": AveragedPredictor}

    @checked()
    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        right: Annotated[
            dict[str, Any] | None,
            "The second network: a preset's name, the path of an mmseg config, or a model config; None: the first's architecture.",
        ] = None,
        mix: Annotated[
            Literal["none", "cutmix"],
            "Whether the networks label unlabeled images as they are, and labeled ones too, or mixtures of unlabeled ones.",
        ] = "none",
        weight: Annotated[
            float, "lambda: weight of the other network's labels; the paper's are 1.5 on VOC and 6 on Cityscapes."
        ] = 1.5,
        rampup: Annotated[Duration, "Duration over which the weight grows; 0, as in the paper: it does not."] = 0.0,
    ) -> None:
        super().__init__(segmentor=segmentor)
        self.right: BaseModule = MODELS.build(right or segmentor)
        self.mix, self.weight, self.rampup = mix, weight, duration(rampup, name="rampup")
        self.acceptance: Acceptance = Acceptance(self.student.num_classes)

    @property
    def left(self) -> EncoderDecoder:
        return self.student

    @property
    def networks(self) -> tuple[EncoderDecoder, EncoderDecoder]:
        return self.student, self.right

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, unlabeled = batch["labeled_weak"], batch["unlabeled_weak"]
        images, valid = unlabeled["inputs"], unlabeled["valid"]
        labels: list[Tensor] = []
        if self.mix == "cutmix":
            kept = self.kept(images)
            labels = [paste(self.classes(model, images)[:, None], kept)[:, 0] for model in self.networks]
            images, valid = paste(images, kept), paste(valid[:, None], kept)[:, 0]
        losses: dict[str, Tensor] = {}
        predictions: list[Tensor] = []
        for side, model in zip(SIDES, self.networks, strict=True):
            own, logits, _ = self.supervise(labeled, images, model)
            losses |= {f"{side}.{name}": value for name, value in own.items()}  # L_s
            predictions.append(logits[len(labeled["inputs"]) :] if labels else logits)
        if not labels:
            labels = [logits.detach().max(dim=1).indices for logits in predictions]
            valid = torch.cat((self.task.valid_mask(labeled)[:, 0], valid))
        for classes in labels:
            self.acceptance.add(classes, valid, valid)
        one, other = (
            cross_entropy(*pair, valid) for pair in zip(predictions, reversed(labels), strict=True)
        )  # CE(P_1, Y_2), CE(P_2, Y_1)
        weight = self.weight * sigmoid_rampup(self.progress, self.fraction(self.rampup))
        agreement = mean((labels[0] == labels[1]).float(), valid)
        return losses | dict(loss_cross=weight * (one + other), agreement=agreement)

    def kept(self, images: Tensor) -> Tensor:
        """Return where images keep their own pixels; elsewhere another image of the batch shows.

        **Shape**: N x 3 x H x W -> N x 1 x H x W bool.
        """
        check_partners(images, "CutMix", instead="method.mix=none")
        return ~overlaid_rectangles(len(images), (images.shape[-2], images.shape[-1]), device=images.device)

    @torch.no_grad()
    def classes(self, model: EncoderDecoder, images: Tensor) -> Tensor:
        """Return a network's most probable classes, in the mode in which it is.

        **Shape**: N x 3 x H x W -> N x H x W int64.
        """
        return logits_of(model, model.extract_feat(images), images.shape[-2:]).max(dim=1).indices

    def bare_passes(self, batch: Batch) -> list[Tensor]:
        labeled, unlabeled = batch["labeled_weak"]["inputs"], batch["unlabeled_weak"]["inputs"]
        if self.mix == "cutmix":
            with torch.no_grad():
                for model in self.networks:
                    model.decode_head(model.extract_feat(unlabeled))
        images = torch.cat((labeled, unlabeled))
        return [output for model in self.networks for output in head_outputs(model, images)]
