"""Mean Teacher: consistency between a student and the exponential moving average of its weights.

Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017, carried over to segmentation as the GCT paper
(Sec. 4) and the U2PL paper (Appendix A) do for their baseline.

| paper | here | shape |
|---|---|---|
| theta, theta' | ``student``, ``teacher`` | |
| f(x, theta', eta'), the target | ``targets`` | N x C x H x W |
| J(theta), consistency cost | ``loss_consistency`` | scalar |
| w(t), ramped up | ``weight * sigmoid_rampup`` | |
| alpha | ``decay`` | |

Choices: the squared error compares softmax, as in the original. With ``detector`` (GCT, Sec. 4.5) a flaw detector learns
on the student's labelled predictions, and the consistency is dropped where it holds the teacher to be more wrong than the
student. The average starts as a plain mean, min(1 - 1/(t+1), decay). The consistency is asked of unlabelled images only, as both papers' programs do. Student and teacher see the same
weak view (GCT, Sec. 4: noise degrades it); ``mean-teacher/strong`` gives the student a strong one. The teacher is what is
validated and deployed.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from sslseg.errors import UserError
from sslseg.functional.consistency import DISTANCES, sigmoid_rampup
from sslseg.functional.flaw import cleaned
from sslseg.methods.base import Batch, SemiSegmentor, move_targets
from sslseg.networks.flaw_detector import FlawDetector
from sslseg.networks.teacher import Teacher
from sslseg.registry import METHODS


@METHODS.register_module()
class MeanTeacher(SemiSegmentor):
    """Mean Teacher.

    Args:
        consistency: ``mse`` (of softmax), ``ce`` (cross entropy with the teacher's distribution) or ``hard`` (with its class).
        weight: of the consistency once ramped up.
        rampup: share of the training over which it grows.
        decay: of the moving average.
        detector: ``width`` and ``norm`` of a flaw detector; None: without.
    """

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak", "strong")}

    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        consistency: str,
        weight: float,
        rampup: float,
        decay: float,
        detector: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(segmentor=segmentor)
        if consistency not in DISTANCES:
            raise UserError(f"method.consistency {consistency!r} is unknown; use one of: {', '.join(DISTANCES)}")
        self.distance = DISTANCES[consistency]
        self.weight, self.rampup = weight, rampup
        self.teacher: Teacher = Teacher(self.student, decays=[(0.0, decay)])
        self.detector = FlawDetector(self.task.channels, **detector) if detector is not None else None

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, weak, strong = (batch[name] for name in ("labeled_weak", "unlabeled_weak", "unlabeled_strong"))
        losses, logits, _ = self.supervise(labeled, strong["inputs"])
        targets = move_targets(self.teacher(weak["inputs"]), strong)
        number = len(labeled["inputs"])
        own, counted = logits[number:], strong["valid"]
        if self.detector is not None:
            predictions = self.task.activate(logits.detach())
            with torch.no_grad():
                pair = torch.cat((predictions[number:], targets))
                student, teacher = self.detector(strong["inputs"], pair).chunk(2)
                counted = counted & ~(cleaned(teacher) > cleaned(student))[:, 0]
            flaws = self.task.flaws(predictions[:number], labeled)
            losses["loss_detector"] = self.detector.loss(
                labeled["inputs"], predictions[:number], flaws, self.task.known(labeled)
            )
        weight = self.weight * sigmoid_rampup(self.progress, self.rampup)
        return losses | dict(loss_consistency=weight * self.distance(own, targets, counted))
