"""Validation inside training: the same code as ``sslseg eval``, so both report the same number."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any, cast

from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader

from sslseg.engine.checkpoints import unwrap
from sslseg.evaluation.metrics import SegmentationMetric
from sslseg.evaluation.pseudo_labels import PseudoLabelMetric
from sslseg.inference import Predictor, Protocol, predict_all


class ScoreLoop(BaseLoop):
    """Score the inference model on the validation images; replaces mmengine's ValLoop.

    Args:
        hidden: unlabeled images whose labels are known; they judge the pseudo-labels of the model, and nothing learns from them.
        evaluator: unused; mmengine passes one to every validation loop.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader,
        evaluator: Any,
        *,
        protocol: Protocol,
        classes: Sequence[str],
        ignore_index: int,
        hidden: DataLoader | None = None,
    ) -> None:
        super().__init__(runner, dataloader)
        self.protocol, self.classes, self.ignore_index = protocol, classes, ignore_index
        self.hidden = hidden

    def run(self) -> dict[str, Any]:
        self.runner.call_hook("before_val_epoch")
        metric = SegmentationMetric(self.classes, ignore_index=self.ignore_index)
        predictor = Predictor(unwrap(self.runner).eval_model, self.protocol)
        for sample, prediction in predict_all(predictor, self.dataloader):
            metric.add(prediction.mask, sample["data_samples"].gt_sem_seg.data[0])
        scores = metric.finish(len(self.dataloader.dataset))
        if self.hidden is not None:
            scores["pseudo_labels"] = self.judge(predictor, self.hidden)
        self.runner.call_hook("after_val_epoch", metrics=scores)
        return scores

    def judge(self, predictor: Predictor, hidden: DataLoader) -> dict[str, Any]:
        """Return coverage and precision of the pseudo-labels that the method accepts."""
        judged = PseudoLabelMetric(len(self.classes), ignore_index=self.ignore_index)
        for sample, prediction in predict_all(predictor, hidden):
            accepted = unwrap(self.runner).accepts(prediction.probabilities[None])[0]
            label = sample["data_samples"].gt_sem_seg.data[0]
            judged.add(prediction.mask.cpu(), accepted.cpu(), label.cpu())
        return judged.finish(len(cast(Sized, hidden.dataset)))
