"""AEL: adaptive equalisation of classes in self-training with a mean teacher.

Hu et al., Semi-Supervised Semantic Segmentation via Adaptive Equalization Learning, NeurIPS 2021; a baseline of U2PL, and
its best augmentation on Cityscapes (Wang et al., CVPR 2022, Table 3). What each part does: ``networks.equalizer``.

| paper | here | shape |
|---|---|---|
| confidence bank | ``equalizer.confidence`` | C |
| L_s, on copy-pasted images | ``decode.loss_*`` | scalar |
| the teacher's class, its confidence | ``classes``, ``certainty`` | N x H x W |
| w, sampling and re-weighting | ``weights`` | N x H x W |
| L_u = sum w l_ce / sum w | ``loss_unlabeled`` | scalar |

Choices: the teacher is in evaluation mode, as everywhere here (in training mode in the authors' program).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from sslseg.functional.consistency import cross_entropy, sigmoid_rampup
from sslseg.methods.base import Batch, Branch, SemiSegmentor, data_sample, move_targets
from sslseg.networks.equalizer import Equalizer
from sslseg.networks.teacher import Teacher
from sslseg.registry import METHODS


def pasted(equalizer: Equalizer, branch: Branch) -> Branch:
    """Return a labelled branch after adaptive copy-paste."""
    images, labels = equalizer.paste(branch["inputs"], branch["labels"])
    return branch | dict(inputs=images, labels=labels, data_samples=list(map(data_sample, labels)))


@METHODS.register_module()
class AEL(SemiSegmentor):
    """AEL.

    Args:
        weight: of the unlabelled images, once ramped up.
        rampup: share of the training over which it grows.
        decay: of the moving average.
        equalizer: settings of ``networks.equalizer.Equalizer``.
    """

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak", "strong")}

    def __init__(
        self, *, segmentor: dict[str, Any], weight: float, rampup: float, decay: float, equalizer: dict[str, Any]
    ) -> None:
        super().__init__(segmentor=segmentor)
        self.weight, self.rampup = weight, rampup
        self.teacher: Teacher = Teacher(self.student, decays=[(0.0, decay)])
        self.equalizer = Equalizer(self.task.channels, **equalizer)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, weak, strong = (batch[name] for name in ("labeled_weak", "unlabeled_weak", "unlabeled_strong"))
        labeled = pasted(self.equalizer, labeled)
        targets = move_targets(self.teacher(weak["inputs"]), strong)
        images, targets, counted = self.equalizer.mix(strong["inputs"], targets, strong["valid"])
        losses, logits, _ = self.supervise(labeled, images)
        number = len(labeled["inputs"])
        self.equalizer.observe(logits[:number].detach().softmax(dim=1), labeled["labels"])
        certainty, classes = targets.max(dim=1)
        own = logits[number:]
        weights = counted * self.equalizer.weights(own.detach().argmax(dim=1), certainty)
        weight = self.weight * sigmoid_rampup(self.progress, self.rampup)
        return losses | dict(loss_unlabeled=weight * cross_entropy(own, classes, weights))
