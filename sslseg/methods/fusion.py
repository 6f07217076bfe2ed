"""Prediction with both of GCT's models: each pixel from the one with the lower flaw probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from sslseg.inference import Predictor, Protocol
from sslseg.networks.flaw_detector import FlawDetector


class FusedPredictor(Predictor):
    """Predict with two models, and tell how wrong each of them is held to be.

    Where the flaw probabilities are equal, the left model's prediction is taken. ``maps`` of a prediction holds
    ``flaw_maps/left`` and ``flaw_maps/right``, H x W in [0, 1], and each model's own mask, ``model_masks/left`` and
    ``model_masks/right``.
    """

    def __init__(self, left: EncoderDecoder, right: EncoderDecoder, detector: FlawDetector, protocol: Protocol) -> None:
        self.model: Any = torch.nn.ModuleList((left, right, detector))
        self.protocol, self.detector = protocol, detector
        self.sides = {"left": Predictor(left, protocol), "right": Predictor(right, protocol)}

    def predict_batch(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        masks, probabilities, maps = {}, {}, {}
        inputs = self.sides["left"].normalized(images)[..., : images[0].shape[-2], : images[0].shape[-1]]
        for side, predictor in self.sides.items():
            masks[side], probabilities[side], _ = predictor.predict_batch(images)
            maps[f"flaw_maps/{side}"] = self.detector(inputs, probabilities[side])[:, 0].clamp(0.0, 1.0)
            maps[f"model_masks/{side}"] = masks[side]
        ours = maps["flaw_maps/left"] <= maps["flaw_maps/right"]
        fused = probabilities["left"].where(ours[:, None], probabilities["right"])
        return masks["left"].where(ours, masks["right"]), fused, maps
