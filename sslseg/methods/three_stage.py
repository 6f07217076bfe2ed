"""Three-stage self-training, stages 2 and 3: a multi-task network learns from stored pseudo-masks.

Ke, Aviles-Rivero, Pandey, Reddy and Schönlieb, A Three-Stage Self-Training Framework for Semi-Supervised Semantic
Segmentation, 2020. Stage 1 is the supervised baseline, Eq. (2); ``sslseg refine`` runs the others.

| paper | here | shape |
|---|---|---|
| f_theta, f_theta' | ``student``, ``teacher`` | |
| g-hat, g-tilde | ``second`` | |
| f_theta(A x), of both sub-batches | ``logits`` | N x C x H x W |
| B f_theta'(x) | ``targets`` | N x C x H x W |
| B y-hat, B y-tilde | ``pseudo_masks`` | N x H x W |
| L_seg, L_con, L_pl | ``decode.loss_*``, ``loss_consistency``, ``loss_pseudo`` | scalar |
| lambda_1, lambda_2 | ``consistency_weight``, ``pseudo_weight`` | |

Sub-batch 1 is the stream ``train`` (L and U), strongly augmented, sub-batch 2 the stream ``labeled``, where A and B are
the identity (Sec. IV-B). L_con and L_pl average over the pixels of both, L_seg over sub-batch 2.

Where the paper is silent: d_c in L_con is the cross entropy with the teacher's whole distribution, as Eq. (1) compares
the networks' outputs; with the pseudo-masks, which are hard, it is the usual one. The average's decay is min(1 - 1/(t+1),
decay) and may grow in steps, as in the authors' program (0.99, 0.995, 0.9975, 0.999 from 0, 1/3, 2/3, 5/6 of the
training; ``three-stage/voc`` and ``cityscapes``); the default keeps 0.99, since in 2,000 steps the others would hold on
to weights of long ago. All state is averaged, BatchNorm's too. What remains at test time is f_theta, the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from sslseg.errors import UserError
from sslseg.functional.consistency import cross_entropy
from sslseg.methods.base import Batch, SemiSegmentor, move_targets
from sslseg.networks.branch import Branch
from sslseg.networks.teacher import Teacher
from sslseg.registry import METHODS

BRANCHES = ("g-hat", "g-tilde")


@METHODS.register_module()
class ThreeStage(SemiSegmentor):
    """The multi-task network of stages 2, 3 and later ones, which repeat stage 3 (Sec. IV-C).

    Args:
        stage: 2 or more.
        branch: ``g-hat`` (own half-width last stage and head) or ``g-tilde`` (own head); None: what the stage has in
            the paper, g-hat in 2 and g-tilde later.
        consistency_weight: lambda_1; 0 leaves L_con and the teacher out (Table V, CR).
        pseudo_weight: lambda_2; 0 leaves Task 2 and its branch out (Table V, T2).
        decays: pairs of a share of the training and the teacher's decay from there on; empty: theta' = theta (Table VI).
    """

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "train": ("weak", "strong")}
    needs_pseudo_masks: ClassVar[bool] = True

    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        stage: int,
        branch: str | None,
        consistency_weight: float,
        pseudo_weight: float,
        decays: Sequence[tuple[float, float]],
    ) -> None:
        super().__init__(segmentor=segmentor)
        if stage < 2:
            raise UserError(
                f"stage {stage} cannot refine: stage 1 is `sslseg train --method supervised`; use 2 or more"
            )
        branch = branch or ("g-hat" if stage == 2 else "g-tilde")
        if branch not in BRANCHES:
            raise UserError(f"branch {branch!r} is unknown; use one of: {', '.join(BRANCHES)}")
        self.consistency_weight, self.pseudo_weight = consistency_weight, pseudo_weight
        self.ignore_index = self.task.ignore_index
        if consistency_weight:
            self.teacher = Teacher(self.student, decays)
        if pseudo_weight:
            self.second = Branch(self.student, segmentor, own_stage=branch == "g-hat")

    @property
    def deployed(self) -> EncoderDecoder:
        return self.student

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, weak, strong = (batch[name] for name in ("labeled_weak", "train_weak", "train_strong"))
        # A x of sub-batch 1 beside sub-batch 2, where A is the identity; L_seg, Eq. (2), on the latter.
        losses, logits, features = self.supervise(labeled, strong["inputs"])
        if self.teacher is not None:  # Eq. (1)
            predicted = self.teacher(torch.cat((labeled["inputs"], weak["inputs"])))
            number = len(labeled["inputs"])
            targets = torch.cat((predicted[:number], move_targets(predicted[number:], strong)))
            # Where nobody annotated a labelled image lies padding, or what nobody could tell.
            counted = torch.cat((labeled["labels"] != self.ignore_index, strong["valid"]))
            consistency = cross_entropy(logits, targets, counted)
            losses["loss_consistency"] = self.consistency_weight * consistency  # lambda_1 L_con, Eqs. (4), (5)
        if self.pseudo_weight:  # Eq. (3)
            pseudo_masks = torch.cat((labeled["pseudo_masks"], strong["pseudo_masks"]))
            known = pseudo_masks != self.ignore_index
            second = self.full_size(self.second(features), like=logits)
            pseudo = cross_entropy(second, pseudo_masks.where(known, 0), known)
            losses["loss_pseudo"] = self.pseudo_weight * pseudo  # lambda_2 L_pl, Eqs. (4), (5)
        return losses
