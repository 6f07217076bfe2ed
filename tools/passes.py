"""What ``bench_train.py`` compares a step with: every network's passes alone; and a stand-in for CCT.

A new method names the branches that its networks see.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from mmcv.cnn.bricks.upsample import PixelShufflePack

from sslseg.methods.base import Batch, SemiSegmentor, fixed
from sslseg.methods.guidedmix import encoder_width
from sslseg.networks.projection import before_classifier
from sslseg.networks.teacher import resized
from sslseg.registry import METHODS

# Which branches each network sees, by method.
STUDENT = dict(
    Supervised=("labeled_weak",),
    MeanTeacher=("labeled_weak", "unlabeled_strong"),
    CutMix=("labeled_weak", "unlabeled_strong"),
    ThreeStage=("labeled_weak", "train_strong"),
    GCT=("labeled_weak", "unlabeled_weak"),
    AEL=("labeled_weak", "unlabeled_strong"),
    U2PL=("labeled_weak", "unlabeled_strong"),
    GuidedMix=("labeled_weak", "unlabeled_weak"),
    AuxiliaryDecoders=("labeled_weak", "unlabeled_weak"),
)
# What is seen without gradients: by the teacher, or by the student where there is none.
TEACHER = dict(
    MeanTeacher=("unlabeled_weak",),
    CutMix=("unlabeled_weak",),
    ThreeStage=("labeled_weak", "train_weak"),
    AEL=("unlabeled_weak",),
    U2PL=("labeled_weak", "unlabeled_strong", "unlabeled_weak"),
    GuidedMix=("unlabeled_weak",),
)
# What the student sees in a second pass: here as many images as there are mixtures of labelled ones.
AGAIN = dict(GuidedMix=("labeled_weak",))


class AuxiliaryDecoder(torch.nn.Module):
    """From the encoder's last feature of the unlabelled half of a batch to its scores, by PixelShuffle."""

    def __init__(self, channels: int, classes: int, doublings: int) -> None:
        super().__init__()
        enlarge = [PixelShufflePack(classes, classes, 2, upsample_kernel=1) for _ in range(doublings)]
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(channels, classes, 1), *enlarge)

    def forward(self, features: Any) -> torch.Tensor:
        unlabeled = features[-1].chunk(2)[1]
        return self.layers(torch.nn.functional.dropout2d(unlabeled, 0.5))


@METHODS.register_module()
class AuxiliaryDecoders(SemiSegmentor):
    """What CCT (Ouali et al., CVPR 2020) holds in memory: decoders of perturbed features must agree with the main one."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak",)}

    def __init__(self, *, segmentor: dict[str, Any], decoders: int) -> None:
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
            scores = resized(decoder(features), target.shape[-2:], align_corners=False)
            distances.append((scores.softmax(dim=1) - target).square().mean())
        return losses | dict(loss_consistency=torch.stack(distances).mean())


def passes(model: Any, batch: Any) -> list[torch.Tensor | None]:
    """Return the images that the student, the teacher and the student again see in one step."""
    name = type(model).__name__
    seen = [[batch[branch]["inputs"] for branch in table.get(name, ())] for table in (STUDENT, TEACHER, AGAIN)]
    return [torch.cat(images) if images else None for images in seen]


def bare_passes(
    model: Any, student: torch.Tensor, teacher: torch.Tensor | None, again: torch.Tensor | None
) -> torch.Tensor:
    """Run the networks and return a scalar to start the backward pass from."""
    heads = [model.second] if hasattr(model, "second") else list(getattr(model, "decoders", []))
    with before_classifier(model.student.decode_head) as seen:
        outputs = segmentor_passes(model.student, student, heads)
    if hasattr(model, "projection"):
        outputs.append(model.projection(seen[0]))
    if again is not None:
        outputs += segmentor_passes(model.student, again, [])
    if hasattr(model, "classifier"):
        outputs.append(model.classifier(student.new_zeros(2, model.classifier.in_features)))
    if hasattr(model, "right"):
        outputs += segmentor_passes(model.right, student, []) + detector_passes(model, student)
    # Squares have a least value: logits that grew without end would make exponentials denormal, and the step slow.
    total = torch.stack([output.float().square().mean() for output in outputs]).sum()
    if teacher is not None:
        with torch.no_grad():
            network = model.student if model.teacher is None else model.teacher.network
            with before_classifier(network.decode_head) as seen:
                network.decode_head(network.extract_feat(teacher))
            if hasattr(model, "key_projection"):
                model.key_projection.network(seen[0][: len(student)])
    return total


def segmentor_passes(segmentor: Any, images: torch.Tensor, heads: list[Any]) -> list[torch.Tensor]:
    features = segmentor.extract_feat(images)
    heads = [segmentor.decode_head, *heads]
    if segmentor.with_auxiliary_head:
        auxiliary = segmentor.auxiliary_head
        heads += auxiliary if isinstance(auxiliary, torch.nn.ModuleList) else [auxiliary]
    return [head(features) for head in heads]


def detector_passes(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """Pass both predictions of all images, back to the predictions, then those of the labelled half, back to the weights."""
    detector, labeled = model.detector.layers, len(images) // 2
    inputs = images.new_zeros(2 * len(images), 3 + model.task.channels, *images.shape[-2:]).requires_grad_()
    with fixed(model.detector):
        first = detector(inputs)
    return [first, detector(inputs[: 2 * labeled].detach())]
