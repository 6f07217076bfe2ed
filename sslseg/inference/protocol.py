"""The protocol of a prediction: whole image, sliding window or center crop, one view or several."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from sslseg.errors import UserError

MODES = ("whole", "slide", "center-crop")
WRITTEN = re.compile(r"([\w-]+)(?: (\d+)x(\d+))?(?: stride (\d+)x(\d+))?(?:, tta scales ([\d.,]+)( flip)?)?")
TTA_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass(frozen=True)
class Protocol:
    """How an image is predicted; part of every reported number.

    Attributes:
        mode: ``whole`` image, ``slide`` (overlapping windows of ``crop``, moved by ``stride``, logits averaged) or
            ``center-crop`` (only the central ``crop`` is predicted and scored).
        crop: height and width in pixels, for ``slide`` and ``center-crop``.
        stride: height and width in pixels, for ``slide``; two thirds of ``crop`` when not given.
        scales: sizes of the test-time augmentation, as factors.
        flip: whether each scale is also predicted from the flipped image.
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
        """Return the protocol whose ``str`` is ``text``; raise ValueError if ``text`` is not one."""
        match = WRITTEN.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a valid evaluation protocol")
        sizes = [(int(match[key]), int(match[key + 1])) if match[key] else None for key in (2, 4)]
        scales = tuple(map(float, match[6].split(","))) if match[6] else (1.0,)
        return cls(match[1], sizes[0], sizes[1], scales, bool(match[7]))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def with_tta(protocol: Protocol) -> Protocol:
    """Return ``protocol`` with the usual six scales and flip."""
    return Protocol(**{**protocol.to_dict(), "scales": TTA_SCALES, "flip": True})
