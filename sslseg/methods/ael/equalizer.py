"""Adaptive equalization: under-performing classes are sampled more often and weighted more.

Hu et al., Semi-Supervised Semantic Segmentation via Adaptive Equalization Learning, NeurIPS 2021 (AEL); part of U2PL's
best rows on Cityscapes (Wang et al., CVPR 2022, Table 3). Four parts, each with its own switch: adaptive CutMix of
unlabeled images, adaptive copy-paste of labeled ones, adaptive equalization sampling, dynamic re-weighting.

Constants are those of the official implementation. Unlike there, images are pasted from the same batch: the whole
dataset would have to be read in the middle of an iteration. The box of a class is that of all its pixels, not of one
connected region, which would have to be found on the CPU.

An EMA that starts at 0 would still be 14% too low after 2,000 iterations. The bank is without bias: the k-th observation of
a class has the weight 1 / k until the EMA decay is reached, as in ``EMA``.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from sslseg.functional.mixing import boxes, rectangles
from sslseg.functional.schedule import Decay

CLASSES_PASTED, FRACTION_PASTED = 3, 0.5


def categorical_sample(weights: Tensor) -> Tensor:
    """Sample an index of each row by its weights; unlike torch's ``multinomial``, without synchronizing.

    **Shape**: N x C -> N int64.
    """
    return (weights / torch.empty_like(weights, memory_format=torch.contiguous_format).exponential_()).argmax(dim=1)


def restart_observations(bank: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a bank of version 0.1, which has no number of observations, start again; called before it is loaded."""
    if f"{prefix}confidence" in state:
        state.setdefault(f"{prefix}observations", torch.zeros_like(state[f"{prefix}confidence"]))


class Equalizer(nn.Module):
    """The confidence bank, and what is sampled and weighted by it.

    Attributes:
        confidence: C: the student's mean probability of the true class, by class; 0 until it is seen.
        observations: C: how many batches held the class.
    """

    confidence: Tensor
    observations: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        momentum: Annotated[Decay, "EMA decay of each class's confidence."] = 0.999,
        gamma: Annotated[float, "Exponent of the teacher's confidence in a pixel's weight."] = 2.0,
        cutmix: Annotated[
            bool, "Adaptive CutMix: paste the box around an under-performing class into another unlabeled image."
        ] = True,
        copy_paste: Annotated[
            bool, "Adaptive copy-paste: paste three sampled classes of a labeled image into another one."
        ] = True,
        sampling: Annotated[bool, "Drop pixels of well-performing classes at random."] = True,
        reweighting: Annotated[bool, "Weight pixels by the teacher's confidence to the power of `gamma`."] = True,
    ) -> None:
        super().__init__()
        self.num_classes, self.momentum, self.gamma = num_classes, momentum, gamma
        self.cutmix, self.copy_paste, self.sampling, self.reweighting = cutmix, copy_paste, sampling, reweighting
        self.register_buffer("confidence", torch.zeros(num_classes))
        self.register_buffer("observations", torch.zeros(num_classes))
        self.register_load_state_dict_pre_hook(restart_observations)

    @torch.no_grad()
    def observe(self, probabilities: Tensor, labels: Tensor) -> None:
        """Update each class's confidence with the student's probability of it at its labeled pixels; absent ones stay.

        **Shape**: N x C x H x W and N x H x W int64, outside [0, C) where there is no label.
        """
        valid = (labels >= 0) & (labels < self.num_classes)
        classes = labels.where(valid, self.num_classes).flatten()
        own = probabilities.gather(1, labels.where(valid, 0)[:, None]).float().flatten()
        sums = torch.zeros(2, self.num_classes + 1, device=own.device)
        sums.scatter_add_(1, classes.expand(2, -1), torch.stack((own, torch.ones_like(own))))
        all_reduce(sums)
        total, number = sums[:, :-1]
        self.observations += number > 0
        share = (1.0 / self.observations.clamp_min(1.0)).clamp_min(1.0 - self.momentum)
        now = total / number.clamp_min(1.0)
        self.confidence.copy_(self.confidence.lerp(now, share).where(number > 0, self.confidence))

    def odds(self) -> Tensor:
        """Return the probability with which each class is sampled.

        **Shape**: -> C.
        """
        return (1.0 - self.confidence).softmax(dim=0)

    def rates(self) -> Tensor:
        """Return the fraction of each class's pixels that is learned, 1 for the class of lowest confidence.

        **Shape**: -> C.
        """
        lacking = 1.0 - self.confidence
        return lacking / lacking.max().clamp_min(1e-6)

    def sample(self, labels: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Sample classes that occur in the batch, and for each an image that holds it.

        **Shape**: N x H x W int64 -> ``number`` classes and as many image indices.
        """
        classes = labels.where((labels >= 0) & (labels < self.num_classes), self.num_classes).flatten(1)
        holds = torch.zeros(len(labels), self.num_classes + 1, device=labels.device).scatter_(1, classes, 1.0)[:, :-1]
        odds = self.odds() * holds.amax(dim=0)
        odds = odds.where(odds.sum() > 0, 1.0)  # a batch without any label
        sampled = categorical_sample(odds.expand(number, -1))
        sources = holds.T[sampled]
        return sampled, categorical_sample(sources.where(sources.sum(dim=1, keepdim=True) > 0, 1.0))

    def paste(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Adaptive copy-paste: paste all pixels of three sampled classes of another image into half of the images.

        **Shape**: N x 3 x H x W and N x H x W int64 -> the same.
        """
        if not self.copy_paste:
            return images, labels
        number = len(images)
        sampled, _ = self.sample(labels, CLASSES_PASTED)
        others = torch.randint(number, (number,), device=images.device)
        pasted = (labels[others][..., None] == sampled).any(dim=-1)
        pasted &= (torch.rand(number, 1, 1, device=images.device) < FRACTION_PASTED).expand_as(pasted)
        return images[others].where(pasted[:, None], images), labels[others].where(pasted, labels)

    def mix(self, images: Tensor, targets: Tensor, valid_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Adaptive CutMix: paste into each image the box around a sampled class of another image.

        **Shape**: N x 3 x H x W, N x C x H x W and N x H x W bool -> the same.
        """
        labels = targets.argmax(dim=1).where(valid_mask, self.num_classes)
        if self.cutmix:
            sampled, others = self.sample(labels, len(images))
            pasted = boxes(labels[others] == sampled[:, None, None])
        else:
            others = torch.arange(len(images), device=images.device).roll(-1)
            pasted = ~rectangles(len(images), (images.shape[-2], images.shape[-1]), device=images.device)
        mixed = [maps[others].where(pasted, maps) for maps in (images, targets, valid_mask[:, None])]
        return mixed[0], mixed[1], mixed[2][:, 0]

    def weights(self, predicted: Tensor, confidence: Tensor) -> Tensor:
        """Return each unlabeled pixel's weight: 0 where it is not sampled, else confidence^gamma.

        Args:
            predicted: the student's class.
            confidence: the teacher's.

        **Shape**: N x H x W each -> N x H x W.
        """
        weights = confidence.float() ** self.gamma if self.reweighting else torch.ones_like(confidence)
        if self.sampling:
            weights = weights * (torch.rand_like(weights) < self.rates()[predicted])
        return weights
