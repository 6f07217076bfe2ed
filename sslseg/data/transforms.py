"""Transforms that mmseg and mmcv lack: reading any image or mask, splitting into views, packing with or without labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform, Compose
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from sslseg.data.reading import read_image, read_mask
from sslseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadSample(BaseTransform):
    """Read the image and, of a labeled sample, its mask; an unlabeled sample gets a map that marks all pixels valid.

    Geometric transforms move ``gt_seg_map`` or ``valid_map`` with the image, so that padding is marked on labeled and
    unlabeled images alike.
    """

    def __init__(self, label_table: np.ndarray) -> None:
        self.label_table = label_table

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        image = read_image(results["img_path"])
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2], reduce_zero_label=False)
        if results["seg_map_path"] is not None:
            results["gt_seg_map"] = read_mask(results["seg_map_path"], self.label_table)
            results["seg_fields"] = ["gt_seg_map"]
        else:
            results["valid_map"] = np.zeros(image.shape[:2], np.uint8)
            results["seg_fields"] = ["valid_map"]
        return results


@TRANSFORMS.register_module()
class RandomScale(BaseTransform):
    """Resize by a random factor of the image's own size; mmcv's RandomResize needs one absolute size per dataset."""

    def __init__(self, factors: tuple[float, float]) -> None:
        self.factors = factors

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        height, width = results["img"].shape[:2]
        factor = np.random.uniform(*self.factors)
        size = (max(round(width * factor), 1), max(round(height * factor), 1))
        results["img"] = cv2.resize(results["img"], size, interpolation=cv2.INTER_LINEAR)
        for key in results["seg_fields"]:
            results[key] = cv2.resize(results[key], size, interpolation=cv2.INTER_NEAREST)
        results["img_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class RandomRotation(BaseTransform):
    """Rotate about the center by up to ``degrees`` in both directions; pixels from outside are filled as padding is."""

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        height, width = results["img"].shape[:2]
        angle = np.random.uniform(-self.degrees, self.degrees)
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
        for key in ("img", *results["seg_fields"]):
            how = cv2.INTER_LINEAR if key == "img" else cv2.INTER_NEAREST
            results[key] = cv2.warpAffine(
                results[key], matrix, (width, height), flags=how, borderValue=results["fill"][key]
            )
        return results


@TRANSFORMS.register_module()
class PadToCrop(BaseTransform):
    """Pad to the crop size at the right and at the bottom: the image with the mean color, its maps with ignore.

    ``fill`` of the results holds these values for every transform that creates pixels without a source.
    """

    def __init__(self, crop: tuple[int, int]) -> None:
        self.crop = crop

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        height, width = results["img"].shape[:2]
        border = (0, max(self.crop[0] - height, 0), 0, max(self.crop[1] - width, 0))
        if any(border):
            for key in ("img", *results["seg_fields"]):
                value = results["fill"][key]
                results[key] = cv2.copyMakeBorder(results[key], *border, cv2.BORDER_CONSTANT, value=value)
            results["img_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class RandomBlur(BaseTransform):
    """Gaussian blur of random sigma (pixels), with a probability."""

    def __init__(self, prob: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)) -> None:
        self.prob, self.sigma = prob, sigma

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if np.random.rand() < self.prob:
            results["img"] = cv2.GaussianBlur(results["img"], (0, 0), np.random.uniform(*self.sigma))
        return results


@TRANSFORMS.register_module()
class RandomGray(BaseTransform):
    """Gray image (three equal channels), with a probability."""

    def __init__(self, prob: float = 0.2) -> None:
        self.prob = prob

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if np.random.rand() < self.prob:
            gray = cv2.cvtColor(results["img"], cv2.COLOR_BGR2GRAY)
            results["img"] = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
        return results


@TRANSFORMS.register_module()
class NoiseCutout(BaseTransform):
    """Replace one random rectangle by noise, with a probability; its maps ignore it.

    The strong view of ST++ (Yang et al., CVPR 2022) ends with it: random erasing (Zhong et al., AAAI 2020) that also erases
    the label.

    Args:
        area: smallest and largest part of the image.
        ratio: smallest and largest height divided by width.
    """

    def __init__(
        self, prob: float = 0.5, area: tuple[float, float] = (0.02, 0.4), ratio: tuple[float, float] = (0.3, 1 / 0.3)
    ) -> None:
        self.prob, self.area, self.ratio = prob, area, ratio

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if np.random.rand() < self.prob:
            top, left, high, wide = self.rectangle(*results["img"].shape[:2])
            for key in results["seg_fields"]:
                results[key][top : top + high, left : left + wide] = results["fill"][key]
            results["img"][top : top + high, left : left + wide] = np.random.randint(0, 256, (high, wide, 3))
        return results

    def rectangle(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return top, left, height and width of a rectangle, sampled again until it lies in the image."""
        while True:
            area, ratio = np.random.uniform(*self.area) * height * width, np.random.uniform(*self.ratio)
            high, wide = int(np.sqrt(area * ratio)), int(np.sqrt(area / ratio))
            top, left = np.random.randint(height), np.random.randint(width)
            if top + high <= height and left + wide <= width:
                return top, left, high, wide


class MultiView:
    """Make the named views of one cropped sample; they are pixel-aligned unless a view moves pixels by a ``matrix``.

    Returns ``{"<stream>_<view>": tensors}`` with the tensors of ``as_tensors``.
    """

    def __init__(self, stream: str, views: dict[str, Sequence[dict[str, Any]]]) -> None:
        self.stream = stream
        self.views = {name: Compose(list(transforms)) for name, transforms in views.items()}

    def __call__(self, results: dict[str, Any]) -> dict[str, dict[str, Any]]:
        packed = {}
        for name, transforms in self.views.items():
            view = transforms(copy.deepcopy(results) if len(self.views) > 1 else results)
            packed[f"{self.stream}_{name}"] = as_tensors(view)
        return packed


def pack(results: dict[str, Any]) -> dict[str, Any]:
    """Turn a results dict into ``{"inputs": uint8 tensor 3 x H x W, "data_samples": SegDataSample}``."""
    image = np.ascontiguousarray(results["img"].transpose(2, 0, 1))
    sample = SegDataSample(metainfo={key: results[key] for key in ("img_path", "sample_id", "img_shape", "ori_shape")})
    if "gt_seg_map" in results:
        label = torch.from_numpy(results["gt_seg_map"].astype(np.int64))
        sample.set_data(dict(gt_sem_seg=PixelData(data=label[None])))
    return dict(inputs=torch.from_numpy(image), data_samples=sample)


def as_tensors(results: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Turn a results dict into tensors of one size for a training batch.

    Returns ``inputs`` uint8 3 x H x W; ``labels`` of a labeled sample or else ``valid`` (bool), H x W; ``pseudo_masks``
    H x W if masks are stored, ``pseudo_weights`` H x W in levels of the store; ``matrix`` 2 x 3 of a geometric
    augmentation.
    """
    sample = dict(inputs=torch.from_numpy(np.ascontiguousarray(results["img"].transpose(2, 0, 1))))
    # torch supports few operations on uint16.
    maps = {
        key: results[key].astype(np.int32) if results[key].itemsize > 1 else results[key]
        for key in results["seg_fields"]
    }
    if "gt_seg_map" in maps:
        sample["labels"] = torch.from_numpy(np.ascontiguousarray(maps["gt_seg_map"]))
    else:
        sample["valid"] = torch.from_numpy(maps["valid_map"] == 0)
    if "pseudo_map" in maps:
        sample["pseudo_masks"] = torch.from_numpy(np.ascontiguousarray(maps["pseudo_map"]))
    if "weight_map" in maps:
        sample["pseudo_weights"] = torch.from_numpy(np.ascontiguousarray(maps["weight_map"]))
    if "matrix" in results:
        sample["matrix"] = results["matrix"]
    return sample
