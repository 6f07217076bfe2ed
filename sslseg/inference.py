"""Prediction under a named protocol: whole image, sliding window or centre crop, one view or several."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from sslseg.errors import UserError

MODES = ("whole", "slide", "center-crop")
WRITTEN = re.compile(r"([\w-]+)(?: (\d+)x(\d+))?(?: stride (\d+)x(\d+))?(?:, tta scales ([\d.,]+)( flip)?)?")
TTA_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass(frozen=True)
class Protocol:
    """How an image becomes a prediction; it is part of every number that is reported.

    Attributes:
        mode: ``whole`` image, ``slide`` (overlapping windows of ``crop``, moved by ``stride``, logits averaged) or
            ``center-crop`` (only the central ``crop`` is predicted and scored).
        crop: height and width in pixels, for ``slide`` and ``center-crop``.
        stride: height and width in pixels, for ``slide``; two thirds of ``crop`` when not given.
        scales: sizes of the test-time augmentation, as factors.
        flip: whether each scale is also predicted mirrored.
    """

    mode: str = "whole"
    crop: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"evaluation mode {self.mode!r} is unknown; use --mode with one of: {', '.join(MODES)}")
        if self.mode != "whole" and self.crop is None:
            raise UserError(f"evaluation mode {self.mode!r} needs a size; give --crop")
        if self.mode == "slide" and self.stride is None and self.crop is not None:
            object.__setattr__(self, "stride", tuple(max(round(side * 2 / 3), 1) for side in self.crop))

    @property
    def augmented(self) -> bool:
        return self.flip or self.scales != (1.0,)

    def __str__(self) -> str:
        text = self.mode
        if self.crop is not None and self.mode != "whole":
            text += f" {self.crop[0]}x{self.crop[1]}"
        if self.mode == "slide" and self.stride is not None:
            text += f" stride {self.stride[0]}x{self.stride[1]}"
        if self.augmented:
            text += f", tta scales {','.join(f'{scale:g}' for scale in self.scales)}{' flip' if self.flip else ''}"
        return text

    @classmethod
    def parse(cls, text: str) -> Protocol:
        """Return the protocol whose ``str`` is ``text``; raise ValueError if there is none."""
        match = WRITTEN.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no evaluation protocol")
        sizes = [(int(match[key]), int(match[key + 1])) if match[key] else None for key in (2, 4)]
        scales = tuple(map(float, match[6].split(","))) if match[6] else (1.0,)
        return cls(match[1], sizes[0], sizes[1], scales, bool(match[7]))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def with_tta(protocol: Protocol) -> Protocol:
    """Return ``protocol`` with the usual six scales and flip."""
    return Protocol(**{**protocol.to_dict(), "scales": TTA_SCALES, "flip": True})


class Prediction(NamedTuple):
    """Of one image: ``mask`` H x W of class indices, ``probabilities`` C x H x W, and what else a method tells, H x W each."""

    mask: Tensor
    probabilities: Tensor
    maps: dict[str, Tensor]


class Predictor:
    """Predict lists of images with a segmentor under a protocol; equal to mmseg's own inference without augmentation.

    With test-time augmentation the softmax of every scale and flip is averaged, as mmseg's SegTTAModel does.
    """

    def __init__(self, model: EncoderDecoder, protocol: Protocol) -> None:
        self.model, self.protocol = model, protocol
        slide = protocol.mode == "slide"
        self.test_cfg = ConfigDict(mode="slide" if slide else "whole")
        if slide:
            self.test_cfg.update(crop_size=protocol.crop, stride=protocol.stride)

    @torch.inference_mode()
    def __call__(self, samples: Sequence[dict[str, Any]]) -> list[Prediction]:
        """Predict packed samples (``inputs`` uint8 3 x H x W); images of one size share a pass."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, sample in enumerate(samples):
            groups.setdefault(tuple(sample["inputs"].shape), []).append(index)
        predictions: dict[int, Prediction] = {}
        for indices in groups.values():
            masks, probabilities, maps = self.predict_batch([samples[index]["inputs"] for index in indices])
            for place, index in enumerate(indices):
                own = {kind: values[place] for kind, values in maps.items()}
                predictions[index] = Prediction(masks[place], probabilities[place], own)
        return [predictions[index] for index in range(len(samples))]

    def predict_batch(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Predict images of one size.

        **Shape**: N of 3 x H x W uint8 -> masks N x H x W int64, probabilities N x C x H x W float32, no other maps.
        """
        previous, self.model.test_cfg = self.model.test_cfg, self.test_cfg
        try:
            if not self.protocol.augmented:
                logits = self._logits(images)
                # max is many times as fast as argmax on a CPU.
                return logits.max(dim=1).indices, logits.softmax(dim=1), {}
            total = torch.zeros(())
            for scale in self.protocol.scales:
                scaled = _resize(images, scale)
                for flipped in (False, True) if self.protocol.flip else (False,):
                    view = [image.flip(-1) for image in scaled] if flipped else scaled
                    logits = self._logits(view)
                    logits = logits.flip(-1) if flipped else logits
                    logits = F.interpolate(logits, images[0].shape[-2:], mode="bilinear", align_corners=False)
                    total = total.to(logits.device) + logits.softmax(dim=1)
            passes = len(self.protocol.scales) * (2 if self.protocol.flip else 1)
            return total.max(dim=1).indices, total / passes, {}
        finally:
            self.model.test_cfg = previous

    def _logits(self, images: Sequence[Tensor]) -> Tensor:
        height, width = images[0].shape[-2:]
        inputs = self.normalized(images)
        shape = tuple(inputs.shape[-2:])
        metas = [dict(img_shape=shape, ori_shape=shape, pad_shape=shape) for _ in images]
        logits = self.model.inference(inputs, metas)
        # A preprocessor's test_cfg may have padded at the right and at the bottom.
        return logits[..., :height, :width].float()

    def normalized(self, images: Sequence[Tensor]) -> Tensor:
        """Return images of one size as the network takes them, possibly padded at the right and at the bottom."""
        data = dict(inputs=list(images), data_samples=[SegDataSample() for _ in images])
        return self.model.data_preprocessor(data, False)["inputs"]


def _resize(images: Sequence[Tensor], scale: float) -> list[Tensor]:
    if scale == 1.0:
        return list(images)
    batch = torch.stack(list(images)).float()
    size = [max(round(side * scale), 1) for side in batch.shape[-2:]]
    scaled = F.interpolate(batch, size, mode="bilinear", align_corners=False)
    return list(scaled.round().clamp(0, 255).to(torch.uint8))


def center_crop(sample: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Cut the central ``size`` (at most the image) out of a packed sample and of its label."""
    height, width = sample["inputs"].shape[-2:]
    top, left = max(height - size[0], 0) // 2, max(width - size[1], 0) // 2
    window = (..., slice(top, top + size[0]), slice(left, left + size[1]))
    data_sample = sample["data_samples"].clone()
    cropped = data_sample.gt_sem_seg.data[window]
    del data_sample.gt_sem_seg
    data_sample.set_data(dict(gt_sem_seg=PixelData(data=cropped)))
    return dict(inputs=sample["inputs"][window].contiguous(), data_samples=data_sample)


def predict_all(
    predictor: Predictor, batches: Iterable[list[dict[str, Any]]]
) -> Iterable[tuple[dict[str, Any], Prediction]]:
    """Yield every sample of ``batches`` with its prediction, in order; the model is in evaluation mode meanwhile."""
    was_training = predictor.model.training
    predictor.model.eval()
    crop = predictor.protocol.crop if predictor.protocol.mode == "center-crop" else None
    try:
        for batch in batches:
            samples = [center_crop(sample, crop) for sample in batch] if crop is not None else batch
            yield from zip(samples, predictor(samples), strict=True)
    finally:
        predictor.model.train(was_training)
