"""AEL: adaptive equalization of classes in self-training with a mean teacher.

Hu et al., Semi-Supervised Semantic Segmentation via Adaptive Equalization Learning, NeurIPS 2021; a baseline of U2PL,
and its best augmentation on Cityscapes (Wang et al., CVPR 2022, Table 3). The four parts of AEL are in ``equalizer.py``.

| paper | here | shape |
|---|---|---|
| confidence bank | ``equalizer.confidence`` | C |
| L_s, on copy-pasted images | ``decode.loss_*`` | scalar |
| the teacher's class; its confidence | ``classes``; ``confidence`` | N x H x W |
| w, sampling and re-weighting | ``weights`` | N x H x W |
| L_u = sum w l_ce / sum w | ``loss_unlabeled`` | scalar |

Choices: the teacher is in evaluation mode, as in all methods here (in training mode in the official implementation).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from torch import Tensor

from sslseg.functional.consistency import cross_entropy
from sslseg.functional.schedule import Decay, Duration, duration, sigmoid_rampup
from sslseg.methods.ael.equalizer import Equalizer
from sslseg.methods.base import Batch, SemiSegmentor, View, data_sample, move_targets
from sslseg.methods.ema import DecayStart, Teacher
from sslseg.registry import MODELS
from sslseg.settings import DEFAULTS


def copy_paste(equalizer: Equalizer, labeled: View) -> View:
    """Return a labeled view after adaptive copy-paste."""
    images, labels = equalizer.paste(labeled["inputs"], labeled["labels"])
    return labeled | dict(inputs=images, labels=labels, data_samples=list(map(data_sample, labels)))


@MODELS.register_module()
class AEL(SemiSegmentor):
    """Adaptive equalization learning."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak", "strong")}

    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        weight: Annotated[float, "Weight of the unlabeled images once ramped up."] = 1.0,
        rampup: Annotated[Duration, "Duration over which the weight grows."] = 0.0,
        decay: Annotated[Decay, "EMA decay of the teacher."] = 0.99,
        decay_start: DecayStart = 1.0,
        equalizer: Annotated[Mapping[str, Any], Equalizer, "Settings of the equalization."] = DEFAULTS,
    ) -> None:
        super().__init__(segmentor=segmentor)
        self.weight, self.rampup = weight, duration(rampup, name="rampup")
        self.teacher: Teacher = Teacher(self.student, decays=[(0.0, decay)], start=decay_start)
        self.equalizer = Equalizer(self.task.channels, **equalizer)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, weak, strong = (batch[name] for name in ("labeled_weak", "unlabeled_weak", "unlabeled_strong"))
        labeled = copy_paste(self.equalizer, labeled)
        targets = move_targets(self.teacher(weak["inputs"]), strong)
        images, targets, valid = self.equalizer.mix(strong["inputs"], targets, strong["valid"])
        losses, logits, _ = self.supervise(labeled, images)
        number = len(labeled["inputs"])
        self.equalizer.observe(logits[:number].detach().softmax(dim=1), labeled["labels"])
        confidence, classes = targets.max(dim=1)
        own = logits[number:]
        weights = valid * self.equalizer.weights(own.detach().argmax(dim=1), confidence)
        weight = self.weight * sigmoid_rampup(self.progress, self.fraction(self.rampup))
        return losses | dict(loss_unlabeled=weight * cross_entropy(own, classes, weights))
