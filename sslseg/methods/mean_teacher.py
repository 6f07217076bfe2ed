"""Mean Teacher: consistency between a student and the EMA of its weights.

Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017, carried over to segmentation as the GCT paper
(Sec. 4) and the U2PL paper (Appendix A) do for their baseline.

| paper | here | shape |
|---|---|---|
| theta, theta' | ``student``, ``teacher`` | |
| f(x, theta', eta'), the target | ``targets`` | N x C x H x W |
| J(theta), consistency cost | ``loss_consistency`` | scalar |
| w(t), ramped up | ``weight * sigmoid_rampup`` | |
| alpha | ``decay`` | |

Choices: the squared error compares softmax, as in the original. With ``detector`` (GCT, Sec. 4.5) a flaw detector learns on
the student's predictions of labeled images, and the consistency is dropped where the detector finds the teacher more wrong
than the student, and averaged over the pixels that remain (GCT's L_dc: over all), so that these weigh more. The EMA starts as a
plain mean (``DecayStart``). Consistency is required on unlabeled images only, as in both papers' official implementations. Student and teacher see the same weak view (GCT, Sec. 4: noise degrades it);
``mean-teacher/default_strong`` gives the student a strong one. The teacher is validated and exported.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from sslseg.functional.consistency import DISTANCES
from sslseg.functional.schedule import Decay, Duration, duration, sigmoid_rampup
from sslseg.methods.base import Batch, SemiSegmentor, move_targets
from sslseg.methods.ema import DecayStart, Teacher
from sslseg.methods.gct.flaw_detector import FlawDetector
from sslseg.methods.gct.flaw_maps import clean_up, flaw_target
from sslseg.registry import MODELS
from sslseg.settings import checked


@MODELS.register_module()
class MeanTeacher(SemiSegmentor):
    """Mean Teacher."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak", "strong")}
    optimizers: ClassVar[dict[str, dict[str, Any]]] = {"detector": dict(type="Adam", lr=1e-4, betas=(0.9, 0.99))}

    @checked()
    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        consistency: Annotated[
            Literal["mse", "ce", "hard"],
            "Distance from the teacher: `mse` of softmax, `ce` (cross entropy with its distribution) or `hard` (with its class).",
        ] = "mse",
        weight: Annotated[float, "Weight of the consistency once ramped up."] = 1.0,
        rampup: Annotated[Duration, "Duration over which the weight grows."] = 0.1,
        decay: Annotated[Decay, "EMA decay of the teacher."] = 0.99,
        decay_start: DecayStart = 1.0,
        detector: Annotated[
            dict[str, Any] | None, FlawDetector, "Settings of a flaw detector (GCT, Sec. 4.5); None: without one."
        ] = None,
    ) -> None:
        super().__init__(segmentor=segmentor)
        self.distance, self.weight, self.rampup = DISTANCES[consistency], weight, duration(rampup, name="rampup")
        self.teacher: Teacher = Teacher(self.student, decays=[(0.0, decay)], start=decay_start)
        self.detector = FlawDetector(self.task.channels, **detector) if detector is not None else None

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, weak, strong = (batch[name] for name in ("labeled_weak", "unlabeled_weak", "unlabeled_strong"))
        losses, logits, _ = self.supervise(labeled, strong["inputs"])
        targets = move_targets(self.teacher(weak["inputs"]), strong)
        number = len(labeled["inputs"])
        own, valid = logits[number:], strong["valid"]
        if self.detector is not None:
            predictions = self.task.activate(logits.detach())
            with torch.no_grad():
                pair = torch.cat((predictions[number:], targets))
                flaws = torch.cat(self.detector(strong["inputs"], pair).chunk(2), dim=1)
                student_flaws, teacher_flaws = clean_up(flaws, valid[:, None]).unbind(dim=1)
                valid = valid & ~(teacher_flaws > student_flaws)
            truth = flaw_target(predictions[:number], labeled["labels"], self.task.valid_mask(labeled))
            losses["loss_detector"] = self.detector.loss(
                labeled["inputs"], predictions[:number], truth, self.task.valid_mask(labeled)
            )
        weight = self.weight * sigmoid_rampup(self.progress, self.fraction(self.rampup))
        return losses | dict(loss_consistency=weight * self.distance(own, targets, valid))
