"""What every method is: a wrapper around an mmseg segmentor that sees a batch of named branches."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel, ImgDataPreprocessor
from mmengine.structures import PixelData
from mmseg.models.decode_heads import decode_head
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from mmseg.utils import add_prefix
from torch import Tensor, nn

from sslseg.data.labels import ignore_value
from sslseg.errors import UserError
from sslseg.functional.geometry import warp
from sslseg.inference import Predictor, Protocol
from sslseg.methods.task import Segmentation
from sslseg.networks.teacher import Average, Teacher, resized
from sslseg.registry import METHODS
from sslseg.store.format import SCORE_SCALE

Branch = dict[str, Any]
Batch = dict[str, Branch]


class BranchPreprocessor(BaseDataPreprocessor):
    """Bring every branch to the device, and normalise its images as the segmentor's own preprocessor does.

    Its loops over single images and its padding are left out: the crops of a batch have one size.
    """

    def __init__(self, preprocessor: ImgDataPreprocessor) -> None:
        super().__init__(non_blocking=True)
        self.preprocessor = preprocessor

    def forward(self, data: Batch, training: bool = False) -> dict[str, Batch]:
        """Return ``{"batch": branches}`` with float images, int64 maps and mmseg's data samples where there are labels."""
        batch: Batch = self.cast_data(data)
        for branch in batch.values():
            branch["inputs"] = self.normalize(branch["inputs"])
            for key in ("labels", "pseudo_masks"):
                if key in branch:
                    branch[key] = branch[key].long()
            if "pseudo_weights" in branch:
                branch["pseudo_weights"] = branch["pseudo_weights"] * SCORE_SCALE
            if "labels" in branch:
                branch["data_samples"] = list(map(data_sample, branch["labels"]))
        return {"batch": batch}

    def normalize(self, images: Tensor) -> Tensor:
        """Return N x 3 x H x W uint8 as the network wants it."""
        own = self.preprocessor
        images = (images[:, [2, 1, 0]] if own._channel_conversion else images).to(torch.float32, copy=True)
        return images.sub_(own.mean).div_(own.std) if own._enable_normalize else images


@contextlib.contextmanager
def losses_alone() -> Iterator[None]:
    """Keep mmseg's heads from work beside the loss: each batch's accuracy, which waits for the device, and idle resizing."""
    accuracy, resize = decode_head.accuracy, decode_head.resize

    def resize_others(input: Tensor, size: Any, **how: Any) -> Tensor:
        return input if input.shape[-2:] == tuple(size) else resize(input=input, size=size, **how)

    decode_head.accuracy, decode_head.resize = lambda *_, **__: torch.zeros(()), resize_others
    try:
        yield
    finally:
        decode_head.accuracy, decode_head.resize = accuracy, resize


@contextlib.contextmanager
def fixed(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through ``module`` without moving it."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def losses_only(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what a segmentor reports without its accuracies."""
    return {name: value for name, value in values.items() if "acc" not in name.rpartition(".")[2]}


def data_sample(label: Tensor) -> SegDataSample:
    """Wrap one label map, H x W, as mmseg's losses take it."""
    shape = tuple(label.shape)
    sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape))
    sample.set_data(dict(gt_sem_seg=PixelData(data=label[None])))
    return sample


class SemiSegmentor(BaseModel):
    """A segmentor in training: ``loss`` of a batch of branches, and the plain segmentor that remains afterwards.

    Args:
        segmentor: config of any mmseg EncoderDecoder, with its class count set.

    A method names the views it wants of each stream in ``views``; the batch then holds one branch for each, called
    ``<stream>_<view>``: a dict of ``inputs`` N x 3 x H x W float; ``labels`` N x H x W int64 and ``data_samples`` (mmseg's)
    of the labelled stream, ``valid`` N x H x W bool of others (False where there is no pixel of the image);
    ``pseudo_masks`` N x H x W int64 where they are stored, and ``pseudo_weights`` float in [0, 1] where they are weighted.
    Views are pixel-aligned, but for those with a ``matrix`` N x 2 x 3 (``move_targets``).

    Attributes:
        task: what depends on the task.
        teacher: the student's average, for methods that set one; it follows the student by itself.
        remarks: what the user should know of the method's choices when training begins.
        step: number of the step that is being taken, from 0.
        steps: how many the whole training takes.
    """

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",)}
    needs_pseudo_masks: ClassVar[bool] = False
    mixes: ClassVar[bool] = False  # whether it has a ``guided_predictor``
    maps: ClassVar[tuple[str, ...]] = ()  # kinds that its predictor gives beside masks (``sslseg.store.format``)

    def __init__(self, *, segmentor: dict[str, Any]) -> None:
        student = METHODS.build(segmentor)
        super().__init__(data_preprocessor=BranchPreprocessor(student.data_preprocessor))
        self.student: EncoderDecoder = student
        self.task = Segmentation(num_classes=student.num_classes, ignore_index=ignore_value(student.num_classes))
        self.teacher: Teacher | None = None
        self.remarks: list[str] = []
        self.step, self.steps = 0, 1

    @property
    def deployed(self) -> EncoderDecoder:
        """The segmentor that is validated, predicts pseudo-masks and is exported: the teacher's, where there is one."""
        return self.student if self.teacher is None else self.teacher.network

    def predictor(self, protocol: Protocol) -> Predictor:
        """Return what makes pseudo-masks of images."""
        return Predictor(self.deployed, protocol)

    @property
    def progress(self) -> float:
        """The share of the training that is done, in [0, 1)."""
        return self.step / self.steps

    def averages(self) -> list[tuple[Average, nn.Module]]:
        """Return what follows what by moving average."""
        return [] if self.teacher is None else [(self.teacher, self.student)]

    def begin(self) -> None:
        """Let averages start as what they follow; called once all initial weights are set, before the first step."""
        for average, original in self.averages():
            average.update(original, decay=0.0)

    def begin_step(self, step: int, steps: int) -> None:
        """Learn which step is taken, of how many."""
        self.step, self.steps = step, steps

    def after_step(self) -> None:
        """Let averages follow; called after each step of the optimiser."""
        for average, original in self.averages():
            average.follow(original, step=self.step, progress=self.progress)

    def state_report(self) -> dict[str, Any]:
        """Return what a record of the training tells beside losses, as JSON types; may wait for the device."""
        return {}

    def forward(self, batch: Batch, mode: str = "loss") -> dict[str, Tensor]:
        """Return the losses of one batch; prediction goes through ``deployed``."""
        if mode != "loss":
            raise ValueError(f"mode {mode!r}: a method only trains; predict with `deployed`")
        return self.loss(batch)

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return named losses (their keys hold "loss") and other values to log."""

    def supervise(
        self, labeled: Branch, others: Tensor | None, segmentor: EncoderDecoder | None = None
    ) -> tuple[dict[str, Tensor], Tensor, Any]:
        """Pass labelled and other images through the student (or another segmentor) together.

        **Shape**: others M x 3 x H x W -> the segmentor's own losses on the N labelled images, the logits of all,
        (N + M) x C x H x W, labelled ones first, and their features.
        """
        segmentor = segmentor or self.student
        samples = labeled["data_samples"]
        images = labeled["inputs"] if others is None else torch.cat((labeled["inputs"], others))
        features = segmentor.extract_feat(images)
        logits = segmentor.decode_head(features)
        if not torch.is_tensor(logits):
            raise UserError(
                f"model.decode_head {type(segmentor.decode_head).__name__} returns no single score map, which"
                f" {type(self).__name__} needs; use a model with another head"
            )
        logits = resized(logits, images.shape[-2:], align_corners=segmentor.decode_head.align_corners)
        with losses_alone():
            losses = add_prefix(segmentor.decode_head.loss_by_feat(logits[: len(samples)], samples), "decode")
            if segmentor.with_auxiliary_head:
                own = [feature[: len(samples)] for feature in features]
                losses.update(segmentor._auxiliary_head_forward_train(own, samples))
        return losses_only(losses), logits, features

    def full_size(self, logits: Tensor, like: Tensor) -> Tensor:
        """Resize ``logits`` to the size of the images ``like``, as mmseg does."""
        return resized(logits, like.shape[-2:], align_corners=self.student.decode_head.align_corners)


def move_targets(targets: Tensor, branch: Branch) -> Tensor:
    """Move maps of the weak view to where a strong view shows their pixels: the operator B, but for what it ignores.

    Pixels from outside become 0; ``valid`` of the strong view tells which they are.

    **Shape**: N x C x H x W -> N x C x H x W.
    """
    return warp(targets, branch["matrix"], mode="nearest") if "matrix" in branch else targets
