"""Random color changes of strong views, on BGR images of bytes.

Brightness and contrast go through a table of 256 values, which rounds; those of mmcv truncate, and take several times as long.
"""

from __future__ import annotations

from typing import Any

import cv2
import mmcv
import numpy as np
from cv2.typing import MatLike
from mmcv.transforms import BaseTransform
from numpy.typing import NDArray

from sslseg.registry import TRANSFORMS

BYTES = np.arange(256, dtype=np.float32)


@TRANSFORMS.register_module()
class ColorJitter(BaseTransform):
    """Change brightness, contrast, saturation and hue by random amounts in random order, with a probability.

    The same operations and ranges as torchvision's ``ColorJitter``, which UniMatch's strong view and those of its successors
    take; mmseg's ``PhotoMetricDistortion`` draws each change with its own probability instead.

    Args:
        brightness, contrast, saturation: a factor from [max(0, 1 - x), 1 + x].
        hue: a shift from [-x, x] of the color circle, x up to 0.5.
    """

    def __init__(
        self,
        brightness: float = 0.5,
        contrast: float = 0.5,
        saturation: float = 0.5,
        hue: float = 0.25,
        prob: float = 0.8,
    ) -> None:
        self.ranges = (
            (change_brightness, max(0.0, 1.0 - brightness), 1.0 + brightness),
            (change_contrast, max(0.0, 1.0 - contrast), 1.0 + contrast),
            (mmcv.adjust_color, max(0.0, 1.0 - saturation), 1.0 + saturation),
            (change_hue, -hue, hue),
        )
        self.prob = prob

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if np.random.rand() < self.prob:
            for position in np.random.permutation(len(self.ranges)):
                change, low, high = self.ranges[position]
                results["img"] = change(results["img"], np.random.uniform(low, high))
        return results


def as_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(values, 0, 255).round().astype(np.uint8)


def change_brightness(image: MatLike, factor: float) -> MatLike:
    """Multiply by ``factor``."""
    return cv2.LUT(image, as_bytes(BYTES * factor))


def change_contrast(image: MatLike, factor: float) -> MatLike:
    """Move every value away from the mean of the gray image, to ``factor`` times its distance."""
    mean = float(round(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).mean()))
    return cv2.LUT(image, as_bytes(mean + (BYTES - mean) * factor))


def change_hue(image: MatLike, shift: float) -> MatLike:
    """Turn the color circle by ``shift``, a fraction of it."""
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL)  # 256 hues: bytes wrap around as the circle does
    hsv[..., 0] += np.uint8(round(shift * 256) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)
