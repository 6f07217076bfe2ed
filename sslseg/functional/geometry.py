"""Affine geometry of images and maps: one function moves both, so that they stay pixel-aligned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(maps: Tensor, matrices: Tensor, *, mode: str, fill: float | Tensor = 0.0) -> Tensor:
    """Give every output pixel the value of ``maps`` at ``matrix @ (x, y, 1)``, in pixels; ``fill`` where it is outside.

    Args:
        matrices: from output to input coordinates.
        mode: ``nearest`` or ``bilinear``.
        fill: a number, or one for each channel.

    **Shape**: N x C x H x W float and N x 2 x 3 -> N x C x H x W.
    """
    height, width = maps.shape[-2:]
    ys = torch.arange(height, device=maps.device, dtype=torch.float32)[:, None]
    xs = torch.arange(width, device=maps.device, dtype=torch.float32)
    # Not a matrix product: mixed precision would run it in half precision, which cannot resolve 1,000 positions.
    rows = matrices.to(maps.device, torch.float32)[..., None, None].unbind(dim=1)
    sources = (row[:, 0] * xs + row[:, 1] * ys + row[:, 2] for row in rows)
    # The coordinates of grid_sample run from -1, the outer edge of the first pixel, to 1, that of the last one.
    sides = (width, height)
    grid = torch.stack([(2 * source + 1) / side - 1 for source, side in zip(sources, sides, strict=True)], dim=-1)
    offset = fill if isinstance(fill, float) else fill.to(maps).reshape(-1, 1, 1)
    return F.grid_sample(maps - offset, grid.to(maps.dtype), mode=mode, align_corners=False) + offset
