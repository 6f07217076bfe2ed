"""What every method is: a wrapper around an mmseg segmentor that sees a batch of named branches."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from mmengine.model import BaseDataPreprocessor, BaseModel
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from sslseg.registry import METHODS

Branch = dict[str, Any]
Batch = dict[str, Branch]


class BranchPreprocessor(BaseDataPreprocessor):
    """Normalise and stack every branch with the segmentor's own preprocessor."""

    def __init__(self, preprocessor: BaseDataPreprocessor) -> None:
        super().__init__()
        self.preprocessor = preprocessor

    def forward(self, data: Batch, training: bool = False) -> dict[str, Batch]:
        return {"batch": {name: self.preprocessor(branch, training) for name, branch in data.items()}}


class SemiSegmentor(BaseModel):
    """A segmentor in training: ``loss`` of a batch of branches, and the plain segmentor that remains afterwards.

    Args:
        segmentor: config of any mmseg EncoderDecoder, with its class count set.

    A method names the views it wants of each stream in ``views``; the batch then holds one branch for each, called
    ``<stream>_<view>``, as ``{"inputs": N x 3 x H x W float, "data_samples": [SegDataSample] * N}``. Views of a stream
    are pixel-aligned. Labelled samples carry ``gt_sem_seg``, unlabelled ones ``valid_map`` (False where padded).
    """

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",)}

    def __init__(self, *, segmentor: dict[str, Any]) -> None:
        student = METHODS.build(segmentor)
        super().__init__(data_preprocessor=BranchPreprocessor(student.data_preprocessor))
        self.student: EncoderDecoder = student

    @property
    def deployed(self) -> EncoderDecoder:
        """The segmentor that is validated, predicts pseudo-masks and is exported."""
        return self.student

    def forward(self, batch: Batch, mode: str = "loss") -> dict[str, Tensor]:
        """Return the losses of one batch; prediction goes through ``deployed``."""
        if mode != "loss":
            raise ValueError(f"mode {mode!r}: a method only trains; predict with `deployed`")
        return self.loss(batch)

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return named losses (their keys hold "loss") and other values to log."""
