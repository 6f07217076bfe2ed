"""Affine geometry of images and maps: one function moves both, so that they stay pixel-aligned to the last pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(maps: Tensor, matrices: Tensor, *, mode: str, fill: float | Tensor = 0.0) -> Tensor:
    """Give every output pixel the value of ``maps`` at ``matrix @ (x, y, 1)``, in pixels; ``fill`` where that is outside.

    Args:
        matrices: from output to input coordinates.
        mode: ``nearest`` or ``bilinear``.
        fill: a number, or one for each channel.

    **Shape**: N x C x H x W float and N x 2 x 3 -> N x C x H x W.
    """
    height, width = maps.shape[-2:]
    ys, xs = torch.meshgrid(
        torch.arange(height, device=maps.device, dtype=torch.float32),
        torch.arange(width, device=maps.device, dtype=torch.float32),
        indexing="ij",
    )
    places = torch.stack((xs, ys, torch.ones_like(xs)), dim=-1)
    sources = torch.einsum("nij,hwj->nhwi", matrices.to(places), places)
    # grid_sample counts from -1 at the outer edge of the first pixel to 1 at that of the last.
    grid = (2 * sources + 1) / sources.new_tensor((width, height)) - 1
    offset = torch.as_tensor(fill, dtype=maps.dtype, device=maps.device).reshape(-1, 1, 1)
    return F.grid_sample(maps - offset, grid.to(maps.dtype), mode=mode, align_corners=False) + offset
