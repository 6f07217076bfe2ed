"""Scores of predicted masks: mmseg's IoUMetric with per-class values and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce
from mmseg.evaluation.metrics import IoUMetric
from torch import Tensor


class SegmentationMetric(IoUMetric):
    """mmseg's IoUMetric that also returns per-class IoU and accuracy and a confusion matrix.

    The scores are mmseg's own, but not rounded to two digits.
    """

    def __init__(self, classes: Sequence[str], *, ignore_index: int) -> None:
        super().__init__(ignore_index=ignore_index)
        self.dataset_meta = dict(classes=tuple(classes))
        self.confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)

    def add(self, mask: Tensor, label: Tensor) -> None:
        """Score one predicted ``mask`` against its ``label``; both H x W, integer."""
        sample = dict(pred_sem_seg=dict(data=mask), gt_sem_seg=dict(data=label))
        self.process({}, [sample])
        self.confusion += confusion_matrix(mask, label, num_classes=len(self.confusion))

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        intersect, union, predicted, labeled = (sum(parts) for parts in zip(*results, strict=True))
        raw = self.total_area_to_metrics(intersect, union, predicted, labeled, self.metrics, self.nan_to_num, self.beta)
        scores: dict[str, Any] = dict(
            mIoU=float(np.nanmean(raw["IoU"]) * 100),
            aAcc=float(raw["aAcc"] * 100),
            mAcc=float(np.nanmean(raw["Acc"]) * 100),
        )
        scores["IoU"] = {
            name: _percent(value) for name, value in zip(self.dataset_meta["classes"], raw["IoU"], strict=True)
        }
        scores["Acc"] = {
            name: _percent(value) for name, value in zip(self.dataset_meta["classes"], raw["Acc"], strict=True)
        }
        return scores

    def finish(self, size: int) -> dict[str, Any]:
        """Gather all ranks' results over ``size`` images and return the scores, in percent, on every rank.

        Keys: ``mIoU``, ``aAcc`` (pixel accuracy), ``mAcc``, ``IoU`` and ``Acc`` by class (None for a class that
        occurs neither in truth nor in prediction), ``confusion`` (rows: truth; columns: prediction; pixels).
        """
        confusion = self.confusion.clone()
        all_reduce(confusion)
        scores = self.evaluate(size)
        scores["confusion"] = confusion.tolist()
        return scores


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else float(value * 100)


def confusion_matrix(mask: Tensor, label: Tensor, *, num_classes: int) -> Tensor:
    """Count pixels by true class (rows) and predicted class (columns); labels that are not a class are ignored.

    **Shape**: H x W, H x W -> C x C int64 on the CPU.
    """
    mask, label = mask.reshape(-1).to(torch.int64), label.reshape(-1).to(mask.device, torch.int64)
    valid = (label >= 0) & (label < num_classes)
    counts = torch.bincount(label[valid] * num_classes + mask[valid], minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).cpu()
