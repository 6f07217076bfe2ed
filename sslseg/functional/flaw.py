"""Flaw maps: where a prediction is wrong, as a dense map that a network can learn and two networks can compare.

Ke, Qiu, Li, Yan and Lau, Guided Collaborative Training for Pixel-wise Semi-Supervised Learning, ECCV 2020, Secs. 3.2 to
3.4 and Appendix A. Where the paper is silent, as in the authors' program: a kernel's size is a share of the image's, made
odd by adding 1, for height and width separately; its standard deviation is 0.3 ((k - 1) / 2 - 1) + 0.8; borders are
reflected; a predicted map is clamped, blurred by a sixteenth of the image and taken for empty where its maximum is at
most 0.1. The program lets ignored pixels count as half a flaw; here they carry no flaw and spread none.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

FAINTEST = 0.1  # a map whose maximum is not above this says nothing


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def blur_matrix(side: int, share: int, device: torch.device) -> Tensor:
    """Return the Gaussian blur along one side, kernel and reflected borders, as a matrix.

    **Shape**: side x side; each row sums to 1.
    """
    size = side // share | 1
    sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
    offsets = torch.arange(size) - size // 2
    kernel = torch.exp(-offsets.double().square() / (2 * sigma * sigma))
    sources = (torch.arange(side)[:, None] + offsets).abs()
    sources = torch.where(sources < side, sources, 2 * (side - 1) - sources)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    matrix.scatter_add_(1, sources, (kernel / kernel.sum()).expand(side, size))
    return matrix.float().to(device)


def blur(maps: Tensor, share: int) -> Tensor:
    """Blur with a Gaussian kernel of 1/share of the image's height and width.

    Two products of matrices: kernels are so long that these are no slower than a separable convolution.

    **Shape**: N x 1 x H x W -> the same, float32.
    """
    height, width = maps.shape[-2:]
    with torch.autocast(maps.device.type, enabled=False):
        rows = blur_matrix(height, share, maps.device) @ maps.float()
        return rows @ blur_matrix(width, share, maps.device).mT


def dilate(maps: Tensor) -> Tensor:
    """Give every pixel the maximum of its 3 x 3 neighbourhood.

    **Shape**: N x 1 x H x W -> the same.
    """
    return F.max_pool2d(maps, 3, stride=1, padding=1)


def normalize(maps: Tensor) -> Tensor:
    """Stretch each map to [0, 1]; a constant map becomes 0.

    **Shape**: N x 1 x H x W -> the same.
    """
    low, high = maps.amin(dim=(1, 2, 3), keepdim=True), maps.amax(dim=(1, 2, 3), keepdim=True)
    return (maps - low) / (high - low + 1e-9)


def flaw_target(errors: Tensor, counted: Tensor, *, nu: int) -> Tensor:
    """Return C, Algorithm 1 of Appendix A, from its third line on: the ground truth of the flaw detector.

    Args:
        errors: what the second line gives, mu times the channels' sum of |T(x) - y|.
        counted: where y is known.
        nu: how often dilation and blur are repeated, 1 for segmentation.

    **Shape**: N x 1 x H x W each -> N x 1 x H x W in [0, 1].
    """
    flaws = blur(errors * counted, 8)
    for _ in range(nu):
        flaws = blur(dilate(flaws), 4)
    return normalize(flaws)


def cleaned(maps: Tensor) -> Tensor:
    """Make a detector's output comparable: clamped, blurred, all 0 where it is faint, else stretched to [0, 1].

    **Shape**: N x 1 x H x W -> the same.
    """
    smooth = blur(maps.clamp_min(0.0), 16)
    return normalize(smooth) * (smooth.amax(dim=(1, 2, 3), keepdim=True) > FAINTEST)


def thresholded(maps: Tensor, xi: float) -> Tensor:
    """Return max(F, {F > xi}), Eq. (4): what is above the threshold counts as wholly wrong."""
    return torch.where(maps > xi, 1.0, maps)


def learns_from_other(own: Tensor, other: Tensor) -> Tensor:
    """Return m_dc, Eq. (5): where the other's flaw is smaller; a tie, also of two that are wrong, keeps the own prediction."""
    return own > other


def both_flawed(one: Tensor, other: Tensor, xi: float) -> Tensor:
    """Return m_fc, Eq. (7): where neither model is right."""
    return (one > xi) & (other > xi)
