"""mmseg's cross entropy and OHEM, as means over the pixels that count, and without synchronizing GPU and CPU.

Registered under mmseg's names, so that every model gets them. mmseg's own divide by all pixels, padding too, or (OHEM with
``avg_non_ignore``) by the labeled ones, not by those that are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from mmseg.models import losses
from mmseg.structures import sampler
from torch import Tensor

from sslseg.registry import MODELS, TASK_UTILS


@MODELS.register_module()
class CrossEntropyLoss(losses.CrossEntropyLoss):
    """The mean over labeled pixels; where a sampler weights them, the weighted mean; 0 if there is none.

    Class weights count in the sum and in the divisor, as in PyTorch.
    """

    def __init__(self, *arguments: Any, avg_non_ignore: bool = True, **settings: Any) -> None:
        super().__init__(*arguments, avg_non_ignore=avg_non_ignore, **settings)

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: Any = None,
        reduction_override: str | None = None,
        ignore_index: int = -100,
        **more: Any,
    ) -> Tensor:
        """Return the loss.

        **Shape**: logits N x C x H x W, label N x H x W int64, weight N x H x W -> scalar; without reduction N x H x W.
        """
        averages = self.avg_non_ignore and not self.use_mask and (reduction_override or self.reduction) == "mean"
        if averages and avg_factor is None:
            avg_factor = self.divisor(cls_score, label, weight, ignore_index)
        return super().forward(cls_score, label, weight, avg_factor, reduction_override, ignore_index, **more)

    def divisor(self, logits: Tensor, label: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
        """Return the sum of the weights of all terms of the loss."""
        valid = label != ignore_index
        weights = valid.float() if weight is None else valid * weight.float()
        if self.use_sigmoid:  # one term for each class; their class weights are those of positive terms
            return weights.sum() * (logits.shape[1] if logits.dim() > label.dim() else 1)
        if self.class_weight is not None:
            weights = weights * logits.new_tensor(self.class_weight, dtype=torch.float32)[label.where(valid, 0)]
        return weights.sum()


@TASK_UTILS.register_module()
class OHEMPixelSampler(sampler.OHEMPixelSampler):
    """Online hard example mining: the labeled pixels whose probability is below ``thresh``, at least ``min_kept`` an image.

    Without ``thresh``, those with the largest losses. The number is met over the batch, not image by image, as in mmseg.
    """

    @torch.no_grad()
    def sample(self, seg_logit: Tensor, seg_label: Tensor) -> Tensor:
        """Return 1 where a pixel is kept, else 0.

        **Shape**: N x C x H x W and N x 1 x H x W -> N x H x W.
        """
        labels = seg_label.squeeze(1)
        valid = labels != self.context.ignore_index
        number = self.min_kept * len(labels)
        if self.thresh is None:
            ease = -self.losses(seg_logit, labels)
        else:
            ease = seg_logit.float().softmax(dim=1).gather(1, labels.where(valid, 0).unsqueeze(1)).squeeze(1)
        ordered = ease.masked_fill(~valid, torch.inf).flatten().sort()
        if self.thresh is None:
            kept = torch.zeros_like(ordered.values).scatter_(0, ordered.indices[:number], 1.0).reshape(labels.shape)
            return kept * valid
        if number >= labels.numel():
            return valid.float()
        return ((ease < ordered.values[number].clamp_min(self.thresh)) & valid).float()

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the head's losses, pixel by pixel."""
        found = self.context.loss_decode
        every = found if isinstance(found, torch.nn.ModuleList) else [found]
        values = [
            loss(logits, labels, weight=None, ignore_index=self.context.ignore_index, reduction_override="none")
            for loss in every
        ]
        return torch.stack(values).sum(dim=0)
