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

Sub-batch 1 is the stream ``train`` (L and U), strongly augmented; sub-batch 2 is the stream ``labeled``, where A and B
are the identity (Sec. IV-B). L_con and L_pl average over the valid pixels of both, L_seg over the labeled ones of
sub-batch 2; so the lambdas mean the same whatever is padding or ignored.

Where the paper is silent: d_c in L_con is the cross entropy with the teacher's whole distribution, as Eq. (1) compares
the networks' outputs; with the pseudo-masks, which are hard, it is the usual one. The EMA starts as a plain mean
(``DecayStart``), with the milestones of the official implementation; short trainings need a single small decay
(``three-stage/default``). The EMA covers all state, BatchNorm's too. The student f_theta is the model of inference.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from sslseg.errors import UserError
from sslseg.functional.consistency import cross_entropy
from sslseg.functional.schedule import DecaySchedule
from sslseg.methods.base import Batch, SemiSegmentor, move_targets
from sslseg.methods.ema import DecayStart, Teacher
from sslseg.methods.three_stage.second_branch import SecondBranch
from sslseg.networks.logits import head_outputs
from sslseg.registry import MODELS
from sslseg.settings import checked


@MODELS.register_module()
class ThreeStage(SemiSegmentor):
    """The multi-task network of stage 2 and later stages; those after stage 3 repeat it (Sec. IV-C)."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "train": ("weak", "strong")}
    needs_pseudo_masks: ClassVar[bool] = True
    pipeline: ClassVar[tuple[str, ...]] = (
        "train --method supervised",
        "pseudolabel --subset train",
        "refine --stage 2",
        "refine --stage 3",
        "eval",
    )

    @checked()
    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        stage: Annotated[int, "Number of the stage, 2 or more."] = 2,
        branch: Annotated[
            Literal["g-hat", "g-tilde", None],
            "Second branch: own half-width last stage and head (`g-hat`), or own head (`g-tilde`); None: `g-hat` in"
            " stage 2, then `g-tilde`.",
        ] = None,
        consistency_weight: Annotated[
            float, "lambda_1; 0 leaves L_con and the teacher out (Table V, CR); default: 1/50 of VOC's labels."
        ] = 0.25,
        pseudo_weight: Annotated[
            float, "lambda_2; 0 leaves Task 2 and its branch out (Table V, T2); default: 1/50 of VOC's labels."
        ] = 0.25,
        decays: Annotated[
            DecaySchedule,
            "EMA decay schedule of the teacher, milestones (fraction of training, decay from there on); empty: theta' ="
            " theta (Table VI).",
        ] = ((0.0, 0.99), (1 / 3, 0.995), (2 / 3, 0.9975), (5 / 6, 0.999)),
        decay_start: DecayStart = 1.0,
    ) -> None:
        super().__init__(segmentor=segmentor)
        if stage < 2:
            raise UserError(
                f"stage {stage} cannot refine: stage 1 is `sslseg train --method supervised`; use 2 or more"
            )
        branch = branch or ("g-hat" if stage == 2 else "g-tilde")
        self.consistency_weight, self.pseudo_weight = consistency_weight, pseudo_weight
        self.ignore_index = self.task.ignore_index
        if consistency_weight:
            self.teacher = Teacher(self.student, decays, decay_start)
        if pseudo_weight:
            self.second = SecondBranch(self.student, segmentor, own_stage=branch == "g-hat")

    @property
    def eval_model(self) -> EncoderDecoder:
        return self.student

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        labeled, weak, strong = (batch[name] for name in ("labeled_weak", "train_weak", "train_strong"))
        # A x of sub-batch 1 beside sub-batch 2, where A is the identity; L_seg, Eq. (2), on the latter.
        losses, logits, features = self.supervise(labeled, strong["inputs"])
        if self.teacher is not None:
            predicted = self.teacher(torch.cat((labeled["inputs"], weak["inputs"])))
            number = len(labeled["inputs"])
            targets = torch.cat((predicted[:number], move_targets(predicted[number:], strong)))
            # A pixel of a labeled image without a label is padding or an ambiguous pixel.
            valid_mask = torch.cat((labeled["labels"] != self.ignore_index, strong["valid"]))
            consistency = cross_entropy(logits, targets, valid_mask)  # L_con, Eq. (1)
            losses["loss_consistency"] = self.consistency_weight * consistency  # Eqs. (4), (5)
        if self.pseudo_weight:
            pseudo_masks = torch.cat((labeled["pseudo_masks"], strong["pseudo_masks"]))
            valid_mask = pseudo_masks != self.ignore_index
            second = self.full_size(self.second(features), like=logits)
            pseudo = cross_entropy(second, pseudo_masks.where(valid_mask, 0), valid_mask)  # L_pl, Eq. (3)
            losses["loss_pseudo"] = self.pseudo_weight * pseudo  # Eqs. (4), (5)
        return losses

    def bare_passes(self, batch: Batch) -> list[Tensor]:
        labeled, weak, strong = (batch[name]["inputs"] for name in ("labeled_weak", "train_weak", "train_strong"))
        if self.teacher is not None:
            with torch.no_grad():
                self.teacher.network.decode_head(self.teacher.network.extract_feat(torch.cat((labeled, weak))))
        heads = (self.second,) if self.pseudo_weight else ()
        return head_outputs(self.student, torch.cat((labeled, strong)), *heads)
