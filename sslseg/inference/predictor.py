"""Prediction of images with a segmentor under a protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from sslseg.inference.protocol import Protocol
from sslseg.store.format import MapKind


class Prediction(NamedTuple):
    """Of one image: ``mask`` H x W of class indices, ``probabilities`` C x H x W, and further ``maps``, H x W each."""

    mask: Tensor
    probabilities: Tensor
    maps: dict[str, Tensor]


class Predictor:
    """Predict lists of images with a segmentor under a protocol; without augmentation this equals mmseg's inference.

    With test-time augmentation the softmax of every scale and flip is averaged, as mmseg's SegTTAModel does.

    A method's own predictor is a subclass, and the method names it in ``predictors``.

    Attributes:
        maps: kinds of maps that it returns besides masks and probabilities, by their name in a store.
        number_of_references: how many labeled images it compares each image with by default; 0: it does not.
    """

    maps: ClassVar[dict[str, MapKind]] = {}
    number_of_references: ClassVar[int] = 0

    def __init__(self, model: EncoderDecoder, protocol: Protocol) -> None:
        self.model, self.protocol = model, protocol
        slide = protocol.mode == "slide"
        self.test_cfg = ConfigDict(mode="slide" if slide else "whole")
        if slide:
            self.test_cfg.update(crop_size=protocol.crop, stride=protocol.stride)

    @classmethod
    def of(cls, method: Any, protocol: Protocol) -> Predictor:
        """Return the predictor of a trained method in evaluation mode."""
        return cls(method.eval_model, protocol)

    @torch.inference_mode()
    def __call__(self, samples: Sequence[dict[str, Any]]) -> list[Prediction]:
        """Predict packed samples (``inputs`` uint8 3 x H x W); images of one size are one batch."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, sample in enumerate(samples):
            groups.setdefault(tuple(sample["inputs"].shape), []).append(index)
        predictions: dict[int, Prediction] = {}
        for indices in groups.values():
            masks, probabilities, maps = self.predict_batch([samples[index]["inputs"] for index in indices])
            for position, index in enumerate(indices):
                own = {kind: values[position] for kind, values in maps.items()}
                predictions[index] = Prediction(masks[position], probabilities[position], own)
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
        # A preprocessor's test_cfg may pad on the right and at the bottom.
        return logits[..., :height, :width].float()

    def normalized(self, images: Sequence[Tensor]) -> Tensor:
        """Return images of one size as the network's input, possibly padded on the right and at the bottom."""
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
    """Crop a packed sample and its label to the central ``size`` (at most the image)."""
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
    """Yield every sample of ``batches`` with its prediction, in order, with the model in evaluation mode."""
    was_training = predictor.model.training
    predictor.model.eval()
    crop = predictor.protocol.crop if predictor.protocol.mode == "center-crop" else None
    try:
        for batch in batches:
            samples = [center_crop(sample, crop) for sample in batch] if crop is not None else batch
            yield from zip(samples, predictor(samples), strict=True)
    finally:
        predictor.model.train(was_training)
