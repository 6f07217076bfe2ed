"""What a method needs to know of the task; GCT's paper has three more, each another object of this form.

Ke et al., ECCV 2020: Eq. (1) asks for the activation and the supervised loss, Appendix A for mu and nu.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslseg.functional.flaw import flaw_target


class Segmentation:
    """Semantic segmentation: softmax, the segmentor's own losses, mu = 1/2 and nu = 1, mIoU.

    Attributes:
        metric: of the validation's scores, the one that names the best checkpoint.
    """

    metric = "mIoU"
    nu = 1

    def __init__(self, *, num_classes: int, ignore_index: int) -> None:
        self.channels, self.ignore_index = num_classes, ignore_index

    def activate(self, output: Tensor) -> Tensor:
        """Return the prediction of a model's output.

        **Shape**: N x C x H x W -> the same, float32 in [0, 1].
        """
        return output.float().softmax(dim=1)

    def known(self, labeled: dict[str, Any]) -> Tensor:
        """Return where the truth is known.

        **Shape**: -> N x 1 x H x W bool.
        """
        return (labeled["labels"] != self.ignore_index)[:, None]

    @torch.no_grad()
    def flaws(self, prediction: Tensor, labeled: dict[str, Any]) -> Tensor:
        """Return C(|T(x) - y|), the flaw detector's ground truth.

        **Shape**: N x C x H x W -> N x 1 x H x W in [0, 1].
        """
        known = self.known(labeled)
        labels = labeled["labels"][:, None].where(known, 0)
        # mu sum_o |T(x)_o - y_o| with mu = 1/2: what the true class lacks, the others have too much.
        return flaw_target(1.0 - prediction.gather(1, labels), known, nu=self.nu)
