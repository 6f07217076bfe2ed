"""CutMix-Mean-Teacher: the student must predict the mixture of the teacher's predictions from the mixture of images.

French et al., Semi-supervised semantic segmentation needs strong, varied perturbations, BMVC 2020, Sec. 3; the baseline of
U2PL and of the three-stage paper. Cutout (same paper) and ClassMix (Olsson et al., WACV 2021) mix otherwise.

| paper | here | shape |
|---|---|---|
| M, the mask | ``kept`` | N x 1 x H x W |
| mix(x_a, x_b, M) = (1 - M) x_a + M x_b | ``paste`` | N x 3 x H x W |
| g(x), the teacher's prediction | ``teacher(...)`` | N x C x H x W |
| L_cons | ``loss_consistency`` | scalar |
| share of pixels with confidence above 0.97 | ``sure`` | scalar |

Choices: partners are neighbours in the batch. ``ce`` takes the teacher's most probable class as target, as ClassMix and
U2PL do, ``mse`` its distribution, as French et al. do. As there, the loss is multiplied with the share of pixels whose
confidence passes the threshold, so that it grows with the teacher; ``per_pixel`` leaves the other pixels out instead.
The weight ramps up, because a teacher that is sure too early holds on to its errors. The teacher sees the weak view; the
student mixes the strong one, which is the weak one unless ``views.strong`` says more.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from sslseg.errors import UserError
from sslseg.functional.consistency import DISTANCES, mean, sigmoid_rampup
from sslseg.functional.mixing import MIXES, mixed
from sslseg.methods.base import Batch, SemiSegmentor, move_targets
from sslseg.networks.teacher import Teacher
from sslseg.registry import METHODS


@METHODS.register_module()
class CutMix(SemiSegmentor):
    """Mean Teacher with mixed images.

    Args:
        mix: ``cutmix``, ``cutout`` (the other half is grey and does not count) or ``classmix``.
        consistency: ``ce`` or ``mse`` with the teacher's distribution, or ``hard``, cross entropy with its class.
        weight: of the consistency once ramped up.
        rampup: share of the training over which it grows.
        threshold: confidence that a pixel's prediction must pass.
        per_pixel: leave unsure pixels out, instead of weighting the loss with the share of sure ones.
        decay: of the moving average.
    """

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak", "strong")}

    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        mix: str,
        consistency: str,
        weight: float,
        rampup: float,
        threshold: float,
        per_pixel: bool,
        decay: float,
    ) -> None:
        super().__init__(segmentor=segmentor)
        for name, value, known in (("mix", mix, MIXES), ("consistency", consistency, DISTANCES)):
            if value not in known:
                raise UserError(f"method.{name} {value!r} is unknown; use one of: {', '.join(known)}")
        self.mix, self.distance, self.weight, self.rampup = mix, DISTANCES[consistency], weight, rampup
        self.threshold, self.per_pixel = threshold, per_pixel
        self.teacher: Teacher = Teacher(self.student, decays=[(0.0, decay)])

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, weak, strong = (batch[name] for name in ("labeled_weak", "unlabeled_weak", "unlabeled_strong"))
        targets = move_targets(self.teacher(weak["inputs"]), strong)
        images, targets, counted = mixed(self.mix, strong["inputs"], targets, strong["valid"])
        losses, logits, _ = self.supervise(labeled, images)
        own = logits[len(labeled["inputs"]) :]
        passing = targets.amax(dim=1) > self.threshold
        sure = mean(passing.float(), counted)
        if self.per_pixel:
            counted = counted & passing
        loss = self.distance(own, targets, counted)
        weight = self.weight * sigmoid_rampup(self.progress, self.rampup)
        share = 1.0 if self.per_pixel else sure
        return losses | dict(loss_consistency=weight * share * loss, sure=sure)
