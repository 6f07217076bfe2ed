"""Strong augmentation A of an image and its exact operator B on masks (three-stage self-training, Sec. III-A).

The paper names RandAugment (Cubuk et al., 2020) and Cutout (DeVries and Taylor, 2017) and gives no numbers. The defaults
are those of the official implementation: 3 of 14 operations, each with probability 0.5 and a magnitude of 1 to 9 (of 10),
then three cutouts. The ranges at magnitude 10 are RandAugment's.

A changes colors, moves pixels and cuts squares out. B moves a mask by the same geometry; pixels from outside the image and
pixels that are cut out are ignored. Geometric operations are composed into one affine map, so image and masks are resampled
once. The sample keeps the map as ``matrix``, and the training moves the teacher's prediction by it (``move_targets``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from numpy.random import choice, rand, randint

from sslseg.functional.geometry import warp
from sslseg.registry import TRANSFORMS
from sslseg.settings import checked

LARGEST = 10  # magnitude at which an operation reaches the end of its range
ENHANCE, POSTERIZE_BITS, ROTATE_DEGREES, SHEAR, TRANSLATE = 0.9, 4, 30.0, 0.3, 0.3

# Every operation takes a strength in (0, 1]; the photometric ones an image, H x W x 3 uint8 BGR, as well.
PHOTOMETRIC: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "identity": lambda image, strength: image,
    "autocontrast": lambda image, strength: mmcv.auto_contrast(image),
    "equalize": lambda image, strength: mmcv.imequalize(image),
    "color": lambda image, strength: mmcv.adjust_color(image, _factor(strength)),
    "contrast": lambda image, strength: mmcv.adjust_contrast(image, _factor(strength)),
    "brightness": lambda image, strength: mmcv.adjust_brightness(image, _factor(strength)),
    "sharpness": lambda image, strength: mmcv.adjust_sharpness(image, _factor(strength)),
    "posterize": lambda image, strength: mmcv.posterize(image, 8 - round(POSTERIZE_BITS * strength)),
    "solarize": lambda image, strength: mmcv.solarize(image, 256 - round(256 * strength)),
}
# Each returns a 3 x 3 matrix in pixel coordinates with the origin at the center of the image.
GEOMETRIC: dict[str, Callable[[tuple[int, int], float], np.ndarray]] = {
    "rotate": lambda size, strength: _rotation(_signed(strength) * math.radians(ROTATE_DEGREES)),
    "shear_x": lambda size, strength: _linear(1, _signed(strength) * SHEAR, 0, 1),
    "shear_y": lambda size, strength: _linear(1, 0, _signed(strength) * SHEAR, 1),
    "translate_x": lambda size, strength: _shift(_signed(strength) * TRANSLATE * size[1], 0),
    "translate_y": lambda size, strength: _shift(0, _signed(strength) * TRANSLATE * size[0]),
}
OPERATIONS = (*PHOTOMETRIC, *GEOMETRIC)


def _signed(strength: float) -> float:
    return strength if rand() < 0.5 else -strength


def _factor(strength: float) -> float:
    return 1 + _signed(ENHANCE * strength)


def _linear(a: float, b: float, c: float, d: float) -> np.ndarray:
    return np.array([[a, b, 0], [c, d, 0], [0, 0, 1]], np.float64)


def _rotation(angle: float) -> np.ndarray:
    return _linear(math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle))


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


@TRANSFORMS.register_module()
class RandAugment(BaseTransform):
    """Apply random operations, photometric ones to the image, geometric ones to the image and all its maps."""

    @checked("RandAugment")
    def __init__(
        self,
        *,
        num_ops: Annotated[int, "Operations that are sampled for each image, without repetition."] = 3,
        prob: Annotated[float, "Probability that a sampled operation is applied."] = 0.5,
        magnitude: Annotated[tuple[int, int], "Range of the integer magnitude, of 10; both ends included."] = (1, 9),
        operations: Annotated[tuple[str, ...], "Operations to sample from."] = OPERATIONS,
        interpolation: Annotated[
            Literal["bilinear", "nearest"], "Of the image; its maps always take the nearest pixel."
        ] = "bilinear",
    ) -> None:
        unknown = set(operations) - set(OPERATIONS)
        if unknown or not 0 < num_ops <= len(operations):
            raise ValueError(f"RandAugment: {num_ops} of the operations {operations}; known: {', '.join(OPERATIONS)}")
        self.num_ops, self.prob, self.magnitude = num_ops, prob, magnitude
        self.operations, self.interpolation = tuple(operations), interpolation

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        image: np.ndarray = results["img"]
        height, width = size = image.shape[:2]
        forward = np.eye(3)
        for name in choice(self.operations, self.num_ops, replace=False):
            if rand() >= self.prob:
                continue
            strength = randint(self.magnitude[0], self.magnitude[1] + 1) / LARGEST
            if name in PHOTOMETRIC:
                image = PHOTOMETRIC[name](image, strength)
            else:
                forward = GEOMETRIC[name](size, strength) @ forward
        results["img"] = image
        center = _shift((width - 1) / 2, (height - 1) / 2)
        inverse = center @ np.linalg.inv(forward) @ np.linalg.inv(center)
        results["matrix"] = torch.from_numpy(inverse[:2]).float()
        if not np.array_equal(forward, np.eye(3)):
            move(results, results["matrix"], interpolation=self.interpolation)
        return results


def move(results: dict[str, Any], matrix: torch.Tensor, *, interpolation: str) -> None:
    """Resample the image and its maps by ``matrix`` (2 x 3, output to input pixel); pixels from outside get ``fill``."""
    for key in ("img", *results["seg_fields"]):
        array = results[key]
        planes = torch.from_numpy(array.astype(np.float32)).reshape(*array.shape[:2], -1).permute(2, 0, 1)
        mode = interpolation if key == "img" else "nearest"
        fill = torch.as_tensor(results["fill"][key], dtype=torch.float32)
        moved = warp(planes[None], matrix[None], mode=mode, fill=fill)[0].permute(1, 2, 0)
        results[key] = moved.round().numpy().astype(array.dtype).reshape(array.shape)


@TRANSFORMS.register_module()
class RandomCutouts(BaseTransform):
    """Cut squares out at random places: the image gets the mean color there, and its maps ignore them."""

    def __init__(
        self,
        *,
        number: Annotated[int, "Number of squares; they may overlap."] = 3,
        size: Annotated[
            int | None,
            "Side in pixels; None: a third of the crop's shorter side, at most 32, as in the official implementation.",
        ] = None,
    ) -> None:
        self.number, self.size = number, size

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        height, width = results["img"].shape[:2]
        size = self.size or min(min(height, width) // 3, 32)
        for _ in range(self.number):
            top, left = randint(0, max(height - size, 0) + 1), randint(0, max(width - size, 0) + 1)
            for key in ("img", *results["seg_fields"]):
                results[key][top : top + size, left : left + size] = results["fill"][key]
        return results
