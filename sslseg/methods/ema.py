"""The exponential moving average (EMA) of a network's state, and the mean teacher: an EMA that predicts and never learns.

Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017, Sec. 2. BatchNorm statistics are averaged like the
weights, and the teacher always normalizes with them (evaluation mode), without dropout.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from sslseg.compat import lerp_all
from sslseg.networks.logits import logits_of


class EMA(nn.Module):
    """The EMA of a module.

    Args:
        decays: the EMA decay schedule as milestones: (duration from the start of training, decay from there on); none: the
            copy equals the original.
    """

    def __init__(self, original: nn.Module, decays: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self.decays = decays
        self.network = copy.deepcopy(original).requires_grad_(False)
        self.train(False)
        self._pairs: tuple[torch.device, list[tuple[Tensor, Tensor]]] | None = None

    def train(self, mode: bool = True) -> EMA:
        """Stay in evaluation mode."""
        return super().train(False)

    def follow(self, original: nn.Module, *, iteration: int, decay: float) -> None:
        """Update after an iteration (counted from 0) with min(1 - 1 / (iteration + 1), ``decay``).

        At first this is a plain mean, in which no old weights linger.
        """
        self.update(original, min(1.0 - 1.0 / (iteration + 1), decay))

    @torch.no_grad()
    def update(self, original: nn.Module, decay: float) -> None:
        """Set every floating-point tensor to decay x own + (1 - decay) x original; copy the others."""
        device = next(original.parameters()).device
        if self._pairs is None or self._pairs[0] != device:
            # Walking through all modules takes longer than updating a small network; moving them makes new tensors.
            tensors = ([*module.parameters(), *module.buffers()] for module in (self.network, original))
            self._pairs = (device, list(zip(*tensors, strict=True)))
        floating = [pair for pair in self._pairs[1] if pair[0].is_floating_point()]
        lerp_all([own for own, _ in floating], [new for _, new in floating], 1.0 - decay)
        for own, new in self._pairs[1]:
            if not own.is_floating_point():
                own.copy_(new)


class Teacher(EMA):
    """The EMA of a segmentor, which predicts."""

    network: EncoderDecoder

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return class probabilities.

        **Shape**: N x 3 x H x W normalized -> N x C x H x W float32.
        """
        return logits_of(self.network, self.network.extract_feat(images), images.shape[-2:]).softmax(dim=1)
