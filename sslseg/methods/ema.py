"""The exponential moving average (EMA) of a network's state, and the mean teacher: an EMA that predicts and never learns.

Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017, Sec. 2. BatchNorm statistics are averaged like the
weights, and the teacher always normalizes with them (evaluation mode), without dropout.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated

import torch
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from sslseg.compat import lerp_all
from sslseg.errors import UserError
from sslseg.networks.logits import logits_of

DecayStart = Annotated[
    float,
    "k: in iteration t, counted from 0, the EMA decay is at most t / (t + k). 1: the plain mean of all iterations so far; more:"
    " the first ones are forgotten sooner.",
]


class EMA(nn.Module):
    """The EMA of a module.

    Args:
        decays: the EMA decay schedule as milestones: (duration from the start of training, decay from there on); none: the
            copy equals the original.
        start: k of ``DecayStart``.
    """

    def __init__(self, original: nn.Module, decays: Sequence[tuple[float, float]], start: float = 1.0) -> None:
        super().__init__()
        if start <= 0:
            raise UserError(f"method.decay_start {start:g} is not positive; give 1 for the plain mean, or more")
        self.decays, self.start = decays, start
        self.network = copy.deepcopy(original).requires_grad_(False)
        self.train(False)
        self._pairs: tuple[torch.device, list[tuple[Tensor, Tensor]]] | None = None

    def train(self, mode: bool = True) -> EMA:
        """Stay in evaluation mode."""
        return super().train(False)

    def follow(self, original: nn.Module, *, iteration: int, decay: float) -> None:
        """Update after an iteration (counted from 0) with min(t / (t + k), ``decay``), t the iteration and k ``start``.

        With k = 1 this is at first the plain mean of all iterations, as in Tarvainen and Valpola's implementation. It holds on to
        the first ones, in which networks and BatchNorm's statistics change most: with k = 10 an average spans the last tenth.
        """
        self.update(original, min(iteration / (iteration + self.start), decay))

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
