"""AugSeg's random intensity augmentation: a random number of random operations of random strength.

Zhao et al., Augmentation Matters: A Simple-yet-Effective Approach to Semi-Supervised Semantic Segmentation, CVPR 2023, Sec. 3.2. The
number and the choice of operations, and the continuous strengths, are the official implementation's: factors only reduce, an
operation may come twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import cv2
import mmcv
import numpy as np
from cv2.typing import MatLike
from mmcv.transforms import BaseTransform
from numpy.random import randint, uniform

from sslseg.data.color import change_brightness, change_contrast, change_hue
from sslseg.registry import TRANSFORMS
from sslseg.settings import checked

# Every operation takes an image, H x W x 3 uint8 BGR, and its strength; beside it: how the strength is sampled.
OPERATIONS: dict[str, tuple[Callable[[MatLike, Any], MatLike], Callable[[], Any]]] = {
    "identity": (lambda image, _: image, lambda: None),
    "autocontrast": (lambda image, _: mmcv.auto_contrast(image), lambda: None),
    "equalize": (lambda image, _: mmcv.imequalize(image), lambda: None),
    "blur": (lambda image, sigma: cv2.GaussianBlur(image, (0, 0), sigma), lambda: uniform(0.1, 2.0)),
    "contrast": (change_contrast, lambda: uniform(0.05, 0.95)),
    "brightness": (change_brightness, lambda: uniform(0.05, 0.95)),
    "color": (mmcv.adjust_color, lambda: uniform(0.05, 0.95)),
    "sharpness": (mmcv.adjust_sharpness, lambda: uniform(0.05, 0.95)),
    "posterize": (mmcv.posterize, lambda: randint(4, 8)),  # bits that are kept, 4 to 7
    "solarize": (mmcv.solarize, lambda: randint(1, 256)),
    "hue": (change_hue, lambda: uniform(-0.5, 0.5)),
}


@TRANSFORMS.register_module()
class RandomIntensity(BaseTransform):
    """Apply one to ``num_ops`` random operations, each sampled from all of them."""

    @checked("RandomIntensity")
    def __init__(self, *, num_ops: Annotated[int, "Largest number of operations; each is as likely."] = 3) -> None:
        self.num_ops = num_ops

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        for name in np.random.choice(list(OPERATIONS), randint(1, self.num_ops + 1)):
            change, strength = OPERATIONS[name]
            results["img"] = change(results["img"], strength())
        return results
