"""CutMix-Mean-Teacher: the student must predict the mixture of the teacher's predictions from the mixture of images.

French et al., Semi-supervised semantic segmentation needs strong, varied perturbations, BMVC 2020, Sec. 3; the baseline of
U2PL and of the three-stage paper. Cutout (same paper) and ClassMix (Olsson et al., WACV 2021) mix in other ways.

| paper | here | shape |
|---|---|---|
| M, the mask | ``kept`` | N x 1 x H x W |
| mix(x_a, x_b, M) = (1 - M) x_a + M x_b | ``paste`` | N x 3 x H x W |
| g(x), the teacher's prediction | ``teacher(...)`` | N x C x H x W |
| L_cons | ``loss_consistency`` | scalar |
| fraction of pixels with confidence above 0.97 | ``confident`` | scalar |

Choices: partners are neighbors in the batch. ``ce`` compares with the teacher's distribution, ``mse`` too, as French et al.
do; ``hard`` takes its most probable class, as ClassMix and U2PL do. As there, the loss is multiplied by the fraction of
pixels whose confidence passes the threshold, so that it grows with the teacher; ``per_pixel`` leaves the other pixels out
instead. The weight ramps up, because an over-confident teacher holds on to its errors. The teacher sees the weak view; the
student sees mixtures of the strong one, which equals the weak one unless ``views.strong`` says more.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from sslseg.functional.confidence import confidence
from sslseg.functional.consistency import DISTANCES, mean
from sslseg.functional.mixing import mixed
from sslseg.functional.schedule import Decay, Duration, duration, sigmoid_rampup
from sslseg.methods.acceptance import Acceptance
from sslseg.methods.base import Batch, SemiSegmentor, move_targets
from sslseg.methods.ema import DecayStart, Teacher
from sslseg.registry import MODELS
from sslseg.settings import checked


@MODELS.register_module()
class CutMix(SemiSegmentor):
    """Mean Teacher with mixed images."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak", "strong")}

    @checked()
    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        mix: Annotated[
            Literal["cutmix", "cutout", "classmix"],
            "How unlabeled images are mixed; with `cutout` the other half is gray and ignored.",
        ] = "cutmix",
        consistency: Annotated[
            Literal["mse", "ce", "hard"],
            "Distance from the teacher: `mse` of softmax, `ce` (cross entropy with its distribution) or `hard` (with its class).",
        ] = "mse",
        weight: Annotated[float, "Weight of the consistency once ramped up."] = 1.0,
        rampup: Annotated[Duration, "Duration over which the weight grows."] = 0.0,
        threshold: Annotated[float, "Confidence that a pixel's prediction must exceed."] = 0.97,
        per_pixel: Annotated[
            bool, "Ignore unconfident pixels, instead of weighting the loss by the fraction of confident ones."
        ] = False,
        decay: Annotated[Decay, "EMA decay of the teacher."] = 0.99,
        decay_start: DecayStart = 1.0,
    ) -> None:
        super().__init__(segmentor=segmentor)
        self.mix, self.distance, self.weight = mix, DISTANCES[consistency], weight
        self.rampup = duration(rampup, name="rampup")
        self.threshold, self.per_pixel = threshold, per_pixel
        self.acceptance: Acceptance = Acceptance(self.student.num_classes)
        self.teacher: Teacher = Teacher(self.student, decays=[(0.0, decay)], start=decay_start)

    def accepts(self, probabilities: Tensor) -> Tensor:
        return confidence(probabilities) > self.threshold

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, weak, strong = (batch[name] for name in ("labeled_weak", "unlabeled_weak", "unlabeled_strong"))
        targets = move_targets(self.teacher(weak["inputs"]), strong)
        images, targets, valid = mixed(self.mix, strong["inputs"], targets, strong["valid"])
        losses, logits, _ = self.supervise(labeled, images)
        own = logits[len(labeled["inputs"]) :]
        passing = targets.amax(dim=1) > self.threshold
        self.acceptance.add(targets.argmax(dim=1), passing, valid)
        confident = mean(passing.float(), valid)
        if self.per_pixel:
            valid = valid & passing
        loss = self.distance(own, targets, valid)
        weight = self.weight * sigmoid_rampup(self.progress, self.fraction(self.rampup))
        factor = 1.0 if self.per_pixel else confident
        return losses | dict(loss_consistency=weight * factor * loss, confident=confident)
