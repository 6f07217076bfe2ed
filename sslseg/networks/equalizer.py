"""Adaptive equalisation: classes that the model knows badly are shown more often, and count for more.

Hu et al., Semi-Supervised Semantic Segmentation via Adaptive Equalization Learning, NeurIPS 2021 (AEL); part of U2PL's best
rows on Cityscapes (Wang et al., CVPR 2022, Table 3). Four parts, each of them on by itself: adaptive CutMix of unlabelled
images, adaptive copy-paste of labelled ones, adaptive equalisation sampling, dynamic re-weighting.

Numbers are those of the authors' program. Unlike it, images are taken from the batch, not from the whole dataset (which
the loader would have to be asked for in the middle of a step), and a class's box is that of all its pixels, not of one
connected region (which would have to be found on the host).
"""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from sslseg.functional.mixing import boxes, rectangles

CLASSES_PASTED, SHARE_PASTED = 3, 0.5


def drawn(weights: Tensor) -> Tensor:
    """Draw an index of each row by its weights; unlike torch's multinomial, without the host looking at them.

    **Shape**: N x C -> N int64.
    """
    return (weights / torch.empty_like(weights, memory_format=torch.contiguous_format).exponential_()).argmax(dim=1)


class Equalizer(nn.Module):
    """The confidence bank, and what is drawn and weighted by it.

    Args:
        momentum: of the confidence of each class.
        gamma: exponent of the teacher's confidence in a pixel's weight.
        cutmix, copy_paste, sampling, reweighting: the four parts.
    """

    confidence: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        momentum: float,
        gamma: float,
        cutmix: bool,
        copy_paste: bool,
        sampling: bool,
        reweighting: bool,
    ) -> None:
        super().__init__()
        self.num_classes, self.momentum, self.gamma = num_classes, momentum, gamma
        self.cutmix, self.copy_paste, self.sampling, self.reweighting = cutmix, copy_paste, sampling, reweighting
        self.register_buffer("confidence", torch.zeros(num_classes))

    @torch.no_grad()
    def observe(self, probabilities: Tensor, labels: Tensor) -> None:
        """Average in how probable the student finds the true class of labelled pixels, by class; absent ones stay.

        **Shape**: N x C x H x W and N x H x W int64, outside [0, C) where unknown.
        """
        known = (labels >= 0) & (labels < self.num_classes)
        classes = labels.where(known, self.num_classes).flatten()
        own = probabilities.gather(1, labels.where(known, 0)[:, None]).float().flatten()
        sums = torch.zeros(2, self.num_classes + 1, device=own.device)
        sums.scatter_add_(1, classes.expand(2, -1), torch.stack((own, torch.ones_like(own))))
        all_reduce(sums)
        total, number = sums[:, :-1]
        now = total / number.clamp_min(1.0)
        self.confidence.copy_(self.confidence.lerp(now, 1.0 - self.momentum).where(number > 0, self.confidence))

    def odds(self) -> Tensor:
        """Return how often each class is to be drawn; they sum to 1.

        **Shape**: -> C.
        """
        return (1.0 - self.confidence).softmax(dim=0)

    def rates(self) -> Tensor:
        """Return the share of a class's pixels that is to be learned, 1 for the class known worst.

        **Shape**: -> C.
        """
        lacking = 1.0 - self.confidence
        return lacking / lacking.max().clamp_min(1e-6)

    def draw(self, labels: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Draw classes that occur in the batch, and an image that holds each.

        **Shape**: N x H x W int64 -> ``number`` classes and as many image indices.
        """
        classes = labels.where((labels >= 0) & (labels < self.num_classes), self.num_classes).flatten(1)
        holds = torch.zeros(len(labels), self.num_classes + 1, device=labels.device).scatter_(1, classes, 1.0)[:, :-1]
        odds = self.odds() * holds.amax(dim=0)
        odds = odds.where(odds.sum() > 0, 1.0)  # a batch without any label
        chosen = drawn(odds.expand(number, -1))
        sources = holds.T[chosen]
        return chosen, drawn(sources.where(sources.sum(dim=1, keepdim=True) > 0, 1.0))

    def paste(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Copy-paste: give half the images all pixels of three drawn classes of another image.

        **Shape**: N x 3 x H x W and N x H x W int64 -> the same.
        """
        if not self.copy_paste:
            return images, labels
        number = len(images)
        chosen, _ = self.draw(labels, CLASSES_PASTED)
        others = torch.randint(number, (number,), device=images.device)
        wanted = (labels[others][..., None] == chosen).any(dim=-1)
        wanted &= (torch.rand(number, 1, 1, device=images.device) < SHARE_PASTED).expand_as(wanted)
        return images[others].where(wanted[:, None], images), labels[others].where(wanted, labels)

    def mix(self, images: Tensor, targets: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Adaptive CutMix: paste into each image the box around a drawn class of another image.

        **Shape**: N x 3 x H x W, N x C x H x W and N x H x W bool -> the same.
        """
        labels = targets.argmax(dim=1).where(counted, self.num_classes)
        if self.cutmix:
            chosen, others = self.draw(labels, len(images))
            pasted = boxes(labels[others] == chosen[:, None, None])
        else:
            others = torch.arange(len(images), device=images.device).roll(-1)
            pasted = ~rectangles(len(images), (images.shape[-2], images.shape[-1]), device=images.device)
        mixed = [maps[others].where(pasted, maps) for maps in (images, targets, counted[:, None])]
        return mixed[0], mixed[1], mixed[2][:, 0]

    def weights(self, predicted: Tensor, certainty: Tensor) -> Tensor:
        """Return each unlabelled pixel's weight: 0 where it is not sampled, else the teacher's certainty^gamma.

        Args:
            predicted: the student's class.
            certainty: the teacher's confidence.

        **Shape**: N x H x W each -> N x H x W.
        """
        weights = certainty.float() ** self.gamma if self.reweighting else torch.ones_like(certainty)
        if self.sampling:
            weights = weights * (torch.rand_like(weights) < self.rates()[predicted])
        return weights
