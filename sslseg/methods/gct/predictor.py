"""Prediction with both of GCT's models: each pixel from the model with the lower flaw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from sslseg.inference import Predictor, Protocol
from sslseg.methods.gct.flaw_detector import FlawDetector
from sslseg.methods.gct.flaw_maps import clean_up
from sslseg.store.format import SCORE_MAP, MapKind

if TYPE_CHECKING:
    from sslseg.methods.gct.method import GCT

LEFT, RIGHT = SIDES = ("left", "right")


class FusedPredictor(Predictor):
    """Predict with two models, and give a flaw map of each.

    A flaw is what Eq. (4) and xi are about: the detector's output after ``clean_up``. So "flaw<0.6" keeps what training with
    xi = 0.6 takes as no complete flaw, and where one model would teach the other, the pixel comes from it; where
    flaws are equal, from the left one. ``maps`` of a prediction holds ``flaw_maps/left`` and ``flaw_maps/right``, H x W in
    [0, 1], and each model's own mask, ``model_masks/left`` and ``model_masks/right``.
    """

    maps: ClassVar[dict[str, MapKind]] = {
        **{f"flaw_maps/{side}": SCORE_MAP for side in SIDES},
        **{f"model_masks/{side}": MapKind("label-map", on_request=True) for side in SIDES},
    }

    def __init__(self, left: EncoderDecoder, right: EncoderDecoder, detector: FlawDetector, protocol: Protocol) -> None:
        self.model: Any = torch.nn.ModuleList((left, right, detector))
        self.protocol, self.detector = protocol, detector
        self.sides = {LEFT: Predictor(left, protocol), RIGHT: Predictor(right, protocol)}

    @classmethod
    def of(cls, method: GCT, protocol: Protocol) -> FusedPredictor:
        return cls(method.left, method.right, method.detector, protocol)

    def predict_batch(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        masks, probabilities, maps = {}, {}, {}
        inputs = self.sides[LEFT].normalized(images)[..., : images[0].shape[-2], : images[0].shape[-1]]
        for side, predictor in self.sides.items():
            masks[side], probabilities[side], _ = predictor.predict_batch(images)
            maps[f"flaw_maps/{side}"] = clean_up(self.detector(inputs, probabilities[side]))[:, 0]
            maps[f"model_masks/{side}"] = masks[side]
        from_left = maps[f"flaw_maps/{LEFT}"] <= maps[f"flaw_maps/{RIGHT}"]
        fused = probabilities[LEFT].where(from_left[:, None], probabilities[RIGHT])
        return masks[LEFT].where(from_left, masks[RIGHT]), fused, maps
