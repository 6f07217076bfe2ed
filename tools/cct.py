"""A stand-in for CCT, written as a method of one's own: what it holds in memory is compared by ``bench_train.py``.

CCT (Ouali et al., CVPR 2020) trains an encoder of stride 8 with thirty auxiliary decoders: those of perturbed features must agree with
the main one.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from mmcv.cnn.bricks.upsample import PixelShufflePack

from sslseg.methods.base import Batch, SemiSegmentor
from sslseg.networks.logits import encoder_width, head_outputs, resize_logits
from sslseg.registry import MODELS


class AuxiliaryDecoder(torch.nn.Module):
    """From the encoder's last feature of the unlabeled half of a batch to its logits, by PixelShuffle."""

    def __init__(self, channels: int, classes: int, doublings: int) -> None:
        super().__init__()
        enlarge = [PixelShufflePack(classes, classes, 2, upsample_kernel=1) for _ in range(doublings)]
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(channels, classes, 1), *enlarge)

    def forward(self, features: Any) -> torch.Tensor:
        unlabeled = features[-1].chunk(2)[1]
        return self.layers(torch.nn.functional.dropout2d(unlabeled, 0.5))


@MODELS.register_module()
class AuxiliaryDecoders(SemiSegmentor):
    """Decoders of perturbed features agree with the main one."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak",)}

    def __init__(self, *, segmentor: dict[str, Any], decoders: Annotated[int, "How many."] = 30) -> None:
        super().__init__(segmentor=segmentor)
        doublings = segmentor["decode_head"]["strides"][-1].bit_length() - 1
        made = [AuxiliaryDecoder(encoder_width(self.student), self.task.channels, doublings) for _ in range(decoders)]
        self.decoders = torch.nn.ModuleList(made)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        labeled, unlabeled = batch["labeled_weak"], batch["unlabeled_weak"]["inputs"]
        losses, logits, features = self.supervise(labeled, unlabeled)
        target = logits.chunk(2)[1].detach().softmax(dim=1)
        distances = []
        for decoder in self.decoders:
            own = resize_logits(decoder(features), target.shape[-2:], align_corners=False)
            distances.append((own.softmax(dim=1) - target).square().mean())
        return losses | dict(loss_consistency=torch.stack(distances).mean())

    def bare_passes(self, batch: Batch) -> list[torch.Tensor]:
        images = torch.cat([view["inputs"] for view in batch.values()])
        return head_outputs(self.student, images, *self.decoders)
