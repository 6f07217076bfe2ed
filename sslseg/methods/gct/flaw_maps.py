"""Flaw maps: where a prediction is wrong, as a dense map that a network can learn and two networks can compare.

Ke, Qiu, Li, Yan and Lau, Guided Collaborative Training for Pixel-wise Semi-Supervised Learning, ECCV 2020, Secs. 3.2 to
3.4 and Appendix A. Where the paper is silent, as in the official implementation: a kernel's size is a fraction of the
image's, made odd by adding 1, for height and width separately; its standard deviation is 0.3 ((k - 1) / 2 - 1) + 0.8; borders
are reflected; a predicted map is clamped, blurred by a sixteenth of the image and taken as empty where its maximum is at
most 0.1. There ignored pixels count as half a flaw; here they have no flaw and spread none, and since the detector never
learns on padding and ignored pixels, a predicted map is blurred and stretched over the others alone. The kernel is Gaussian to its end;
there its tails are folded back into it, which changes C by at most 0.004.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

FAINTEST = 0.1  # a map whose maximum is not above this is taken as empty
NU = 1  # of semantic segmentation


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def blur_matrix(side: int, part: int, device: torch.device) -> Tensor:
    """Return the Gaussian blur along one side, kernel and reflected borders, as a matrix.

    **Shape**: side x side; each row sums to 1.
    """
    size = side // part | 1
    sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
    offsets = torch.arange(size) - size // 2
    kernel = torch.exp(-offsets.double().square() / (2 * sigma * sigma))
    sources = (torch.arange(side)[:, None] + offsets).abs()
    sources = torch.where(sources < side, sources, 2 * (side - 1) - sources)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    matrix.scatter_add_(1, sources, (kernel / kernel.sum()).expand(side, size))
    return matrix.float().to(device)


def blur(maps: Tensor, part: int) -> Tensor:
    """Blur with a Gaussian kernel of 1/part of the image's height and width.

    Two products of matrices: kernels are so long that a separable convolution is not faster.

    **Shape**: N x K x H x W -> the same, float32.
    """
    height, width = maps.shape[-2:]
    with torch.autocast(maps.device.type, enabled=False):
        rows = blur_matrix(height, part, maps.device) @ maps.float()
        return rows @ blur_matrix(width, part, maps.device).mT


def dilate(maps: Tensor) -> Tensor:
    """Give every pixel the maximum of its 3 x 3 neighborhood.

    **Shape**: N x 1 x H x W -> the same.
    """
    return F.max_pool2d(maps, 3, stride=1, padding=1)


def normalize(maps: Tensor) -> Tensor:
    """Stretch each map to [0, 1]; a constant map becomes 0.

    **Shape**: N x 1 x H x W -> the same.
    """
    low, high = maps.amin(dim=(1, 2, 3), keepdim=True), maps.amax(dim=(1, 2, 3), keepdim=True)
    return (maps - low) / (high - low + 1e-9)


@torch.no_grad()
def flaw_target(predictions: Tensor, labels: Tensor, valid_mask: Tensor, *, nu: int = NU) -> Tensor:
    """Return C(|T(x) - y|), Algorithm 1 of Appendix A: the ground truth of the flaw detector.

    Args:
        predictions: class probabilities.
        labels: any value where ``valid_mask`` is False.
        nu: how often dilation and blur are repeated.

    **Shape**: N x C x H x W, N x H x W int64 and N x 1 x H x W bool -> N x 1 x H x W in [0, 1].
    """
    # mu sum_o |T(x)_o - y_o| with mu = 1/2: what the true class lacks, the others have too much.
    errors = 1.0 - predictions.gather(1, labels[:, None].where(valid_mask, 0))
    return spread_errors(errors, valid_mask, nu=nu)


def spread_errors(errors: Tensor, valid_mask: Tensor, *, nu: int) -> Tensor:
    """Return Algorithm 1 from its third line on.

    Args:
        errors: what the second line gives, mu times the channels' sum of |T(x) - y|.
        valid_mask: where there is a label.

    **Shape**: N x 1 x H x W each -> N x 1 x H x W in [0, 1].
    """
    flaws = blur(errors * valid_mask, 8)
    for _ in range(nu):
        flaws = blur(dilate(flaws), 4)
    return normalize(flaws)


def reflect_into_padding(maps: Tensor, valid_mask: Tensor) -> Tensor:
    """Continue maps behind the last row and column that hold valid pixels, reflected as ``blur`` does at borders.

    **Shape**: N x K x H x W and N x 1 x H x W bool -> N x K x H x W.
    """
    for dim, across in ((2, 3), (3, 2)):
        index = torch.arange(maps.shape[dim], device=maps.device).unflatten(0, (-1, 1) if dim == 2 else (1, -1))
        last = (index * valid_mask.any(dim=across, keepdim=True)).amax(dim=dim, keepdim=True)
        source = torch.where(index > last, 2 * last - index, index).clamp_min(0)
        maps = maps.gather(dim, source.expand_as(maps))
    return maps


@torch.no_grad()
def clean_up(maps: Tensor, valid_mask: Tensor | None = None) -> Tensor:
    """Post-process a detector's output so that maps can be compared: clamp, blur, all 0 where faint, else stretch to [0, 1].

    Only valid pixels enter the blur, minimum and maximum, and the others become 0: padding changes nothing.

    Args:
        maps: those of K models for each image.
        valid_mask: None: all pixels are valid.

    **Shape**: N x K x H x W and N x 1 x H x W bool -> N x K x H x W.
    """
    if valid_mask is None:
        valid_mask = torch.ones_like(maps[:, :1], dtype=torch.bool)
    values = maps.float().clamp_min(0.0).where(valid_mask, 0.0)
    blurred = blur(reflect_into_padding(torch.cat((values, valid_mask), dim=1), valid_mask), 16)
    smooth = blurred[:, :-1] / blurred[:, -1:].clamp_min(1e-6)
    low = smooth.where(valid_mask, torch.inf).amin(dim=(2, 3), keepdim=True)
    high = smooth.where(valid_mask, 0.0).amax(dim=(2, 3), keepdim=True)
    return ((smooth - low) / (high - low + 1e-9)).where(valid_mask & (high > FAINTEST), 0.0)


def exceeding_to_one(maps: Tensor, xi: float) -> Tensor:
    """Return max(F, {F > xi}), Eq. (4): a flaw above the threshold counts as complete."""
    return torch.where(maps > xi, 1.0, maps)


def learns_from_other(own: Tensor, other: Tensor) -> Tensor:
    """Return m_dc, Eq. (5): where the other's flaw is smaller; a tie, also of two wrong predictions, keeps the own one."""
    return own > other


def both_flawed(one: Tensor, other: Tensor, xi: float) -> Tensor:
    """Return m_fc, Eq. (7): where neither model is right."""
    return (one > xi) & (other > xi)
