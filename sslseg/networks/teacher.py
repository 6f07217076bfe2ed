"""The mean teacher: an exponential moving average of a network's state, which predicts and never learns.

Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017, Sec. 2. BatchNorm statistics are averaged
like the weights, and the teacher always normalises with them (evaluation mode), without dropout.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn


class Average(nn.Module):
    """An averaged copy of a module.

    Args:
        decays: pairs of a share of the training and the decay from there on; none: the copy is the original.
    """

    def __init__(self, original: nn.Module, decays: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self.decays = decays
        self.network = copy.deepcopy(original).requires_grad_(False)
        self.train(False)
        self._pairs: tuple[torch.device, list[tuple[Tensor, Tensor]]] | None = None

    def train(self, mode: bool = True) -> Average:
        """Stay in evaluation mode."""
        return super().train(False)

    def follow(self, original: nn.Module, *, step: int, progress: float) -> None:
        """Average ``original`` in after step number ``step`` (from 0), when ``progress`` of the training is done.

        The decay is min(1 - 1 / (step + 1), decay): a plain mean at first, in which no old weights linger.
        """
        reached = [decay for start, decay in self.decays if start <= progress]
        self.update(original, min(1.0 - 1.0 / (step + 1), reached[-1]) if reached else 0.0)

    @torch.no_grad()
    def update(self, original: nn.Module, decay: float) -> None:
        """Move every floating-point tensor: average = decay x average + (1 - decay) x original; copy the others."""
        device = next(original.parameters()).device
        if self._pairs is None or self._pairs[0] != device:
            # Walking through all modules takes longer than averaging a small network; moving them makes new tensors.
            tensors = ([*module.parameters(), *module.buffers()] for module in (self.network, original))
            self._pairs = (device, list(zip(*tensors, strict=True)))
        floating = [pair for pair in self._pairs[1] if pair[0].is_floating_point()]
        torch._foreach_lerp_([own for own, _ in floating], [new for _, new in floating], 1.0 - decay)
        for own, new in self._pairs[1]:
            if not own.is_floating_point():
                own.copy_(new)


class Teacher(Average):
    """An averaged segmentor, which predicts."""

    network: EncoderDecoder

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return class probabilities.

        **Shape**: N x 3 x H x W normalised -> N x C x H x W float32.
        """
        return scores(self.network, self.network.extract_feat(images), images.shape[-2:]).softmax(dim=1)


def scores(segmentor: EncoderDecoder, features: Any, size: tuple[int, ...]) -> Tensor:
    """Return the decode head's logits of ``features``, resized to ``size``, in float32.

    **Shape**: -> N x C x H x W.
    """
    head = segmentor.decode_head
    return resized(head(features), size, align_corners=head.align_corners)


def resized(logits: Tensor, size: tuple[int, ...], *, align_corners: bool) -> Tensor:
    """Return ``logits`` at the size of the image, as mmseg resizes them."""
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=align_corners)
