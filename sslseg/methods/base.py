"""What every method is: a wrapper around an mmseg segmentor that sees a batch of named views."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel, ImgDataPreprocessor
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from mmseg.utils import add_prefix
from torch import Tensor, nn

from sslseg.compat import SINGLE_VALUE, auxiliary_losses, normalize_images, skip_accuracy
from sslseg.data.labels import ignore_value
from sslseg.errors import UserError
from sslseg.functional.geometry import warp
from sslseg.functional.schedule import Epochs
from sslseg.inference.predictor import Predictor
from sslseg.methods.acceptance import Acceptance
from sslseg.methods.ema import EMA, Teacher
from sslseg.methods.task import Segmentation
from sslseg.networks.logits import head_outputs, resize_logits
from sslseg.registry import MODELS, register_modules
from sslseg.store.format import SCORE_SCALE

View = dict[str, Any]
Batch = dict[str, View]


class ViewPreprocessor(BaseDataPreprocessor):
    """Bring every view to the device, and normalize its images as the segmentor's own preprocessor does.

    Its loops over single images and its padding are left out: the crops of a batch have one size.
    """

    def __init__(self, preprocessor: ImgDataPreprocessor) -> None:
        super().__init__(non_blocking=True)
        self.preprocessor = preprocessor

    def forward(self, data: Batch, training: bool = False) -> dict[str, Batch]:
        """Return ``{"batch": views}`` with float images, int64 maps and mmseg's data samples where there are labels."""
        batch: Batch = self.cast_data(data)
        for view in batch.values():
            view["inputs"] = normalize_images(self.preprocessor, view["inputs"])
            for key in ("labels", "pseudo_masks"):
                if key in view:
                    view[key] = view[key].long()
            if "pseudo_weights" in view:
                view["pseudo_weights"] = view["pseudo_weights"] * SCORE_SCALE
            if "labels" in view:
                view["data_samples"] = list(map(data_sample, view["labels"]))
        return {"batch": batch}


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Freeze the parameters of ``module``: gradients pass through it, none reaches them."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def drop_metrics(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the losses that a segmentor reports, without its accuracies."""
    return {name: value for name, value in values.items() if "acc" not in name.rpartition(".")[2]}


def data_sample(label: Tensor) -> SegDataSample:
    """Wrap one label map, H x W, in the form that mmseg's losses take."""
    shape = tuple(label.shape)
    sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape))
    sample.set_data(dict(gt_sem_seg=PixelData(data=label[None])))
    return sample


class SemiSegmentor(BaseModel):
    """A segmentor in training: ``loss`` of a batch of views, and the plain segmentor that remains afterwards.

    A subclass declares what the commands need to know of it, and defines ``loss``. Its settings are the keyword-only
    parameters of its ``__init__`` (``sslseg.settings``).

    A batch holds one view for each name in ``views``, called ``<stream>_<view>``: a dict of ``inputs`` N x 3 x H x W float;
    ``labels`` N x H x W int64 and ``data_samples`` (mmseg's) of the labeled stream, ``valid`` N x H x W bool of others (False
    where there is no pixel of the image); ``pseudo_masks`` N x H x W int64 where they are stored, and ``pseudo_weights`` float
    in [0, 1] where they are weighted; ``index`` N int64, the images' places in their stream. Views are pixel-aligned, except
    those with a ``matrix`` N x 2 x 3 (``move_targets``).

    Attributes:
        views: the views that it wants of each stream (``labeled``, ``unlabeled``, or ``train``: both).
        segmentors: settings that hold the config of a further segmentor; a preset's name or a config's path will do.
        optimizers: of the parts that have one of their own, by the name of the submodule; a config changes them.
        predictors: how ``sslseg pseudolabel --predictor NAME`` predicts; the first one is the default.
        refiners: methods by which ``sslseg refine`` learns from its stores; the first that can do what is asked for.
        needs_pseudo_masks: whether it learns from a store, and so is one of these.
        takes_weights: whether it can weight stored pixels, and leave out those that are marked as unreliable.
        pipeline: the commands from a split to scores, each on the run before it; what ``make NAME`` does.
        old_settings: what settings of earlier versions are called today; None where one is gone.
        task: what depends on the task.
        acceptance: which pseudo-labels it accepts, by class, for methods that set and fill one; the history shows it.
        teacher: the EMA of the student, for methods that set one; it follows the student by itself.
        messages: what the user should know about the method's choices when training begins.
        iteration: number of the present iteration, from 0.
        iterations, iterations_per_epoch: the length of the training (``sslseg.config.lengths``).
    """

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",)}
    segmentors: ClassVar[tuple[str, ...]] = ()
    optimizers: ClassVar[dict[str, dict[str, Any]]] = {}
    predictors: ClassVar[dict[str, type[Predictor]]] = {"direct": Predictor}
    refiners: ClassVar[tuple[str, ...]] = ("three-stage", "self-training")
    needs_pseudo_masks: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = False
    pipeline: ClassVar[tuple[str, ...]] = ("train", "pseudolabel", "eval")
    old_settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, *, segmentor: dict[str, Any]) -> None:
        register_modules()
        student = MODELS.build(segmentor)
        super().__init__(data_preprocessor=ViewPreprocessor(student.data_preprocessor))
        self.student: EncoderDecoder = student
        self.task = Segmentation(num_classes=student.num_classes, ignore_index=ignore_value(student.num_classes))
        self.teacher: Teacher | None = None
        self.acceptance: Acceptance | None = None
        self.messages: list[str] = []
        self.iteration, self.iterations, self.iterations_per_epoch = 0, 1, 1

    @property
    def eval_model(self) -> EncoderDecoder:
        """The segmentor that is validated, predicts pseudo-masks and is exported: the teacher's, where there is one."""
        return self.student if self.teacher is None else self.teacher.network

    @property
    def progress(self) -> float:
        """The fraction of training that is done, in [0, 1)."""
        return self.iteration / self.iterations

    def fraction(self, duration: float) -> float:
        """Return a duration (``sslseg.functional.schedule``) as a fraction of training."""
        if isinstance(duration, Epochs):
            return duration * self.iterations_per_epoch / self.iterations
        return duration

    def ema_pairs(self) -> list[tuple[EMA, nn.Module]]:
        """Return every EMA with the module that it follows."""
        return [] if self.teacher is None else [(self.teacher, self.student)]

    def initialize_ema(self) -> None:
        """Let every EMA start as the module that it follows; called once all initial weights are set."""
        for ema, original in self.ema_pairs():
            ema.update(original, decay=0.0)

    def begin_training(self, iterations: int, iterations_per_epoch: int = 1) -> None:
        """Take the length of the training; called before its first iteration."""
        self.iterations, self.iterations_per_epoch = iterations, iterations_per_epoch

    def begin_iteration(self, iteration: int) -> None:
        """Take the number of the iteration that begins."""
        self.iteration = iteration

    def after_iteration(self) -> None:
        """Update every EMA; called after each step of the optimizer."""
        for ema, original in self.ema_pairs():
            reached = [decay for start, decay in ema.decays if self.fraction(start) <= self.progress]
            ema.follow(original, iteration=self.iteration, decay=reached[-1] if reached else 0.0)

    def log_values(self) -> dict[str, Any]:
        """Return what the training curves hold beside losses, as JSON types; may synchronize; called on every rank at once."""
        taken = self.acceptance.take() if self.acceptance is not None else {}
        return dict(pseudo_labels=taken) if taken else {}

    def accepts(self, probabilities: Tensor) -> Tensor:
        """Return which pixels of a prediction the method would take as pseudo-labels; by default all.

        **Shape**: N x C x H x W -> N x H x W bool.
        """
        return torch.ones_like(probabilities[:, 0], dtype=torch.bool)

    def forward(self, batch: Batch, mode: str = "loss") -> dict[str, Tensor]:
        """Return the losses of one batch; prediction goes through ``eval_model``."""
        if mode != "loss":
            raise ValueError(f"mode {mode!r}: a method only trains; predict with `eval_model`")
        try:
            return self.loss(batch)
        except ValueError as error:
            if SINGLE_VALUE not in str(error):
                raise
            raise UserError(
                "the model's BatchNorm after global pooling needs more than one image, but a rank has only one; give --batch-size"
                " at least 2 for each rank, or take a model without image pooling"
            ) from error

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return named losses (their keys hold "loss") and other values to log."""

    def supervise(
        self,
        labeled: View,
        others: Tensor | None,
        segmentor: EncoderDecoder | None = None,
        perturb: Callable[[Sequence[Tensor], int], Sequence[Tensor]] | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, Any]:
        """Pass labeled and other images through the student (or another segmentor) together.

        Args:
            perturb: changes the features before the heads; called with them and with N. It may add images, but not before
                the N labeled ones.

        **Shape**: others M x 3 x H x W -> the segmentor's own losses on the N labeled images, the logits of all,
        (N + M) x C x H x W, labeled ones first, and their features.
        """
        segmentor = segmentor or self.student
        samples = labeled["data_samples"]
        images = labeled["inputs"] if others is None else torch.cat((labeled["inputs"], others))
        features = segmentor.extract_feat(images)
        if perturb is not None:
            features = perturb(features, len(samples))
        logits = segmentor.decode_head(features)
        if not torch.is_tensor(logits):
            raise UserError(
                f"model.decode_head {type(segmentor.decode_head).__name__} returns more than one score map, but"
                f" {type(self).__name__} needs a single one; use a model with another head"
            )
        logits = resize_logits(logits, images.shape[-2:], align_corners=segmentor.decode_head.align_corners)
        if self.acceptance is not None:
            self.acceptance.add_labels(labeled["labels"])
        with skip_accuracy():
            losses = add_prefix(segmentor.decode_head.loss_by_feat(logits[: len(samples)], samples), "decode")
            if segmentor.with_auxiliary_head:
                own = [feature[: len(samples)] for feature in features]
                losses.update(auxiliary_losses(segmentor, own, samples))
        return drop_metrics(losses), logits, features

    def full_size(self, logits: Tensor, like: Tensor) -> Tensor:
        """Resize ``logits`` to the size of the images ``like``, as mmseg does."""
        return resize_logits(logits, like.shape[-2:], align_corners=self.student.decode_head.align_corners)

    def bare_passes(self, batch: Batch) -> list[Tensor]:
        """Run the networks of one iteration without any loss, and return what a backward pass would start from.

        This is what benchmarks compare an iteration with: here the student on the further views of each stream, or its only
        one, and the teacher on the first view of all but the labeled one.
        """
        if self.teacher is not None:
            others = [batch[f"{stream}_{names[0]}"] for stream, names in self.views.items() if stream != "labeled"]
            with torch.no_grad():
                head_outputs(self.teacher.network, torch.cat([view["inputs"] for view in others]))
        images = [
            batch[f"{stream}_{name}"]["inputs"] for stream, names in self.views.items() for name in names[1:] or names
        ]
        return head_outputs(self.student, torch.cat(images))

    def bench_parts(self, batch: Batch) -> dict[str, Callable[[], object]]:
        """Return parts of an iteration that benchmarks measure alone, by name, each as a call that runs it once."""
        return {}


def move_targets(targets: Tensor, view: View) -> Tensor:
    """Move maps of the weak view to where a strong view shows their pixels.

    Pixels from outside become 0; ``valid`` of the strong view says which they are.

    **Shape**: N x C x H x W -> N x C x H x W.
    """
    return warp(targets, view["matrix"], mode="nearest") if "matrix" in view else targets
