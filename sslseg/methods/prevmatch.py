"""PrevMatch: UniMatch that also learns from a random ensemble of earlier states of its student.

Shin et al., Revisiting and Maximizing Temporal Knowledge in Semi-Supervised Semantic Segmentation, arXiv 2405.20610, Sec. 3.

| paper | here | shape |
|---|---|---|
| the past models, at most N | ``past`` | first in, first out |
| k from 1 to K; w from Dirichlet(1, ..., 1) | ``sample`` | k |
| sum of w_i f_i(x_w), i of k random past models | ``past_probabilities`` | N x C x H x W |
| L_prev: L_u of UniMatch with the classes of the past models | ``terms`` with ``past_term`` | scalar |
| L = (L_x + L_u + lambda L_prev) / (2 + lambda) | ``loss`` | scalar |

lambda grows from 0 to ``past_weight`` in the first half of training, and falls to 0 in the second. Without past models L is UniMatch's.

Departures: a copy of the student enters the memory at even distances (``interval``). The official implementation adds one after each
epoch with a new best score on the validation images, which are then no longer unseen. Its lambda changes from epoch to epoch, here from
iteration to iteration. On Cityscapes it weights each image by its mean confidence, but multiplies the sum of all images' losses by the
sum of their confidences, as many times too much as there are images, and padding counts; here (``past_trust="mean"``) each image's
loss has its own mean confidence. k, the models and w are the rank's own: its images are, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from sslseg.errors import UserError
from sslseg.functional.pseudo_labels import PseudoLabels, accepted_cross_entropy
from sslseg.functional.schedule import Duration, duration
from sslseg.methods.base import Batch
from sslseg.methods.ema import EMA
from sslseg.methods.unimatch import UniMatch
from sslseg.networks.logits import head_outputs, logits_of
from sslseg.registry import MODELS
from sslseg.settings import checked


def cross_entropy_by_confidence(logits: Tensor, labels: PseudoLabels) -> Tensor:
    """Return the mean cross entropy of the valid pixels, each image weighted by its mean confidence.

    **Shape**: logits N x C x H x W -> scalar; 0 if no pixel is valid.
    """
    losses = F.cross_entropy(logits.float(), labels.classes, reduction="none")
    pixels = labels.valid.sum(dim=(1, 2)).clamp_min(1)
    confidence = (labels.confidence * labels.valid).sum(dim=(1, 2)) / pixels
    return (losses * labels.valid * confidence[:, None, None]).sum() / labels.valid.sum().clamp_min(1)


@MODELS.register_module()
class PrevMatch(UniMatch):
    """PrevMatch."""

    @checked()
    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        interval: Annotated[Duration, "m: duration between two copies of the student."] = "2 epochs",
        memory: Annotated[int, "N: how many past models are kept; a new one replaces the oldest."] = 8,
        ensemble: Annotated[int, "K: at most so many of them give the labels of an iteration."] = 3,
        past_trust: Annotated[
            Literal["threshold", "mean"],
            "Learn from confident pixels of the past models, or from all, each image weighted by its mean confidence.",
        ] = "threshold",
        past_threshold: Annotated[float, "The confidence that a past pseudo-label must reach."] = 0.9,
        past_weight: Annotated[float, "Largest lambda, in the middle of training."] = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(segmentor=segmentor, **settings)
        if min(memory, ensemble) < 1:
            raise UserError(
                f"method.memory is {memory} and method.ensemble {ensemble}; give at least 1, or use UniMatch"
            )
        self.interval, self.memory, self.ensemble = duration(interval, name="interval"), memory, ensemble
        self.past_trust, self.past_threshold, self.past_weight = past_trust, past_threshold, past_weight
        self.past = nn.ModuleList()
        self.past.register_load_state_dict_pre_hook(self.make_room)
        size = sum(value.nbytes for value in self.student.state_dict().values()) / 2**20
        self.messages.append(
            f"up to {memory} past models take {memory * size:.0f} MiB on the device and in each checkpoint"
            " (--set method.memory=... changes it)"
        )

    def make_room(self, past: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        """Hold as many past models as a state dict has, before it is loaded."""
        names = (name.removeprefix(prefix) for name in state_dict if name.startswith(prefix))
        number = len({name.partition(".")[0] for name in names})
        del self.past[number:]
        while len(self.past) < number:
            self.past.append(EMA(self.student, decays=()))

    def after_iteration(self) -> None:
        super().after_iteration()
        every = max(round(self.fraction(self.interval) * self.iterations), 1)
        if (self.iteration + 1) % every:
            return
        if len(self.past) < self.memory:
            self.past.append(EMA(self.student, decays=()))
            return
        oldest: Any = self.past.pop(0)
        oldest.update(self.student, decay=0.0)
        self.past.append(oldest)

    def sample(self) -> Iterator[tuple[EncoderDecoder, float]]:
        """Return random past models with their weights, which add up to 1; by numbers on the CPU."""
        number = min(np.random.randint(1, self.ensemble + 1), len(self.past))
        chosen = np.random.choice(len(self.past), number, replace=False)
        networks = [self.past[index].network for index in chosen.tolist()]
        return zip(networks, np.random.dirichlet(np.ones(number)).tolist(), strict=True)

    @torch.no_grad()
    def past_probabilities(self, images: Tensor) -> Tensor:
        """Return the softmax of the weighted mean of some past models' logits.

        **Shape**: N x 3 x H x W -> N x C x H x W.
        """
        size = images.shape[-2:]
        logits = [weight * logits_of(network, network.extract_feat(images), size) for network, weight in self.sample()]
        return torch.stack(logits).sum(dim=0).softmax(dim=1)

    def past_term(self, logits: Tensor, labels: PseudoLabels) -> Tensor:
        if self.past_trust == "mean":
            return cross_entropy_by_confidence(logits, labels)
        return accepted_cross_entropy(logits, labels, self.past_threshold)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        made = self.predict(batch)
        weight = self.past_weight * (1.0 - abs(2.0 * self.progress - 1.0)) if len(self.past) else 0.0
        share = 1.0 / (2.0 + weight)
        losses = self.own_losses(batch, made, share=share)
        if weight:
            weak = batch["unlabeled_weak"]
            labels = PseudoLabels.of(self.past_probabilities(weak["inputs"]), weak["valid"])
            strong, features = self.terms(batch, made, labels, self.past_term)
            losses["loss_past"] = share * weight * (strong + features)
        return losses

    def bare_passes(self, batch: Batch) -> list[Tensor]:
        if len(self.past):
            with torch.no_grad():
                for network, _ in self.sample():
                    head_outputs(network, batch["unlabeled_weak"]["inputs"])
        return super().bare_passes(batch)
