"""What FixMatch and its successors share: strong views learn from the confident classes of a weak one."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from sslseg.functional.confidence import confidence
from sslseg.functional.pseudo_labels import PseudoLabels
from sslseg.functional.schedule import Duration, duration, sigmoid_rampup
from sslseg.methods.acceptance import Acceptance
from sslseg.methods.base import SemiSegmentor, View, move_targets


class WeakToStrong(SemiSegmentor):
    """A method that accepts pseudo-labels from a threshold of confidence on."""

    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        threshold: Annotated[float, "tau: the confidence that a pseudo-label must reach; 0 accepts all."] = 0.95,
        weight: Annotated[float, "lambda: weight of the pseudo-labels."] = 1.0,
        rampup: Annotated[
            Duration,
            "Duration over which the weight grows (not in the paper: short trainings start with a poor labeler).",
        ] = 0.0,
    ) -> None:
        super().__init__(segmentor=segmentor)
        self.threshold, self.weight, self.rampup = threshold, weight, duration(rampup, name="rampup")
        self.acceptance: Acceptance = Acceptance(self.student.num_classes)

    @property
    def current_weight(self) -> float:
        """The weight of the pseudo-labels in the present iteration."""
        return self.weight * sigmoid_rampup(self.progress, self.fraction(self.rampup))

    def accepts(self, probabilities: Tensor) -> Tensor:
        return confidence(probabilities) >= self.threshold


def seen_in(view: View, labels: PseudoLabels) -> PseudoLabels:
    """Return the labels of the weak view where another view of the same images shows their pixels.

    **Shape**: N x H x W -> the same; class 0 without confidence where the view shows none, and not valid.
    """
    classes, certainty = labels.classes, labels.confidence
    if "matrix" in view:
        moved, certainty = move_targets(torch.stack((classes.float(), certainty), dim=1), view).unbind(dim=1)
        classes = moved.long()
    return PseudoLabels(classes, certainty, view["valid"])
