"""Mixing images and their targets by random masks, sampled for a whole batch on its device.

CutMix for segmentation: French et al., Semi-supervised semantic segmentation needs strong, varied perturbations, BMVC
2020, Sec. 3.4. Cutout: DeVries and Taylor 2017. ClassMix: Olsson et al., WACV 2021, Algorithm 1.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from sslseg.errors import UserError

DRAWS = 64
MIXES = ("cutmix", "cutout", "classmix")


def mixed(mix: str, images: Tensor, targets: Tensor, valid_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mix images, their targets and their valid masks by one mask; partners are neighbors in the batch.

    Args:
        mix: one of ``MIXES``; ``cutout`` makes the other half gray and invalid.

    **Shape**: N x 3 x H x W, N x C x H x W and N x H x W bool -> the same.
    """
    if mix == "classmix":
        kept = class_masks(targets.max(dim=1).indices, targets.shape[1], valid_mask)
    else:
        kept = rectangles(len(images), (images.shape[-2], images.shape[-1]), device=images.device)
    if mix == "cutout":
        return images * kept, targets, valid_mask & kept[:, 0]
    check_partners(images, mix)
    return paste(images, kept), paste(targets, kept), paste(valid_mask[:, None], kept)[:, 0]


def check_partners(images: Tensor, mix: str, *, instead: str = "") -> None:
    """Raise UserError where an image of a batch has no other one to be mixed with.

    Args:
        mix: what mixes them.
        instead: a setting that does without.
    """
    if len(images) < 2:
        remedy = f"raise --unlabeled-batch-size{f', or --set {instead}' if instead else ''}"
        raise UserError(f"{mix} mixes images of a batch, but each rank has only one; {remedy}")


def inside(tops: Tensor, lefts: Tensor, high: Tensor | int, wide: Tensor | int, size: tuple[int, int]) -> Tensor:
    """Return boxes as maps, True inside; what lies outside of the image is cut off.

    **Shape**: places and sides in pixels, N x 1 x 1 x 1 each, and (H, W) -> N x 1 x H x W bool.
    """
    rows = torch.arange(size[0], device=tops.device).reshape(1, 1, -1, 1)
    columns = torch.arange(size[1], device=tops.device).reshape(1, 1, 1, -1)
    return (rows >= tops) & (rows < tops + high) & (columns >= lefts) & (columns < lefts + wide)


def rectangles(
    number: int,
    size: tuple[int, int],
    *,
    area: float | Tensor = 0.5,
    side: float = 1.0,
    device: torch.device,
) -> Tensor:
    """Return for each image a rectangle, True inside, that covers ``area`` of it, with a random aspect ratio.

    Args:
        area: one, or one for each image.
        side: multiplies the sides of the rectangle, the longest of which is the image's.

    **Shape**: N, (H, W), area N x 1 x 1 x 1 -> N x 1 x H x W bool.
    """
    height, width = size
    uniform = torch.rand(3, number, 1, 1, 1, device=device)
    # Height and width as fractions of the image: their product is `area`, and neither exceeds 1.
    high = area ** uniform[0]
    wide = area / high
    high, wide = side * high, side * wide
    tops = ((1 - high) * height * uniform[1]).round()
    lefts = ((1 - wide) * width * uniform[2]).round()
    return inside(tops, lefts, (high * height).round(), (wide * width).round(), size)


def overlaid_rectangles(
    number: int,
    size: tuple[int, int],
    *,
    count: int = 3,
    area: tuple[float, float] = (0.25, 0.5),
    device: torch.device,
) -> Tensor:
    """Return for each image the pixels that an odd number of ``count`` rectangles cover.

    The area of each is uniform in ``area``, divided by ``count``, and no side exceeds 1 / sqrt(``count``) of the image's: as in the
    implementations of French et al. and of CPS.

    **Shape**: N, (H, W) -> N x 1 x H x W bool.
    """
    areas = torch.empty(number * count, 1, 1, 1, device=device).uniform_(*area)
    covered = rectangles(number * count, size, area=areas, side=count**-0.5, device=device)
    return functools.reduce(torch.logical_xor, covered.unflatten(0, (number, count)).unbind(dim=1))


def small_boxes(
    number: int,
    size: tuple[int, int],
    *,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    prob: float = 0.5,
    device: torch.device,
) -> Tensor:
    """Return for each image, with probability ``prob``, a box that lies inside it; True inside, nothing otherwise.

    Area (a fraction of the image), aspect ratio (height / width) and top left corner are uniform and sampled again until the box
    lies inside, as the implementations of ST++ and UniMatch do; so small boxes are more frequent. All samples are taken at once,
    and the first box that fits is taken: one of 64 does but for one image in 10^12.

    **Shape**: N, (H, W) -> N x 1 x H x W bool.
    """
    height, width = size
    areas, aspects, tops, lefts = torch.rand(4, number, DRAWS, device=device)
    areas = torch.lerp(areas.new_tensor(area[0]), areas.new_tensor(area[1]), areas) * (height * width)
    aspects = torch.lerp(aspects.new_tensor(aspect[0]), aspects.new_tensor(aspect[1]), aspects)
    high, wide = (areas * aspects).sqrt().floor(), (areas / aspects).sqrt().floor()
    tops, lefts = (tops * height).floor(), (lefts * width).floor()
    fits = (tops + high <= height) & (lefts + wide <= width)
    first = fits.int().argmax(dim=1, keepdim=True)
    chosen = (torch.rand(number, 1, device=device) < prob) & fits.gather(1, first)
    top, left, high, wide = (values.gather(1, first)[..., None, None] for values in (tops, lefts, high, wide))
    return inside(top, left, high, wide, size) & chosen[..., None, None]


def class_masks(labels: Tensor, num_classes: int, valid_mask: Tensor) -> Tensor:
    """Return the valid pixels of a random half (rounded up) of the classes that each label map holds there.

    **Shape**: N x H x W int64 in [0, num_classes) and N x H x W bool -> N x 1 x H x W bool.
    """
    number = labels.shape[0]
    flat = labels.where(valid_mask, num_classes).flatten(1)
    present = torch.zeros(number, num_classes + 1, dtype=torch.bool, device=labels.device).scatter_(1, flat, True)
    present[:, -1] = False
    order = torch.rand(number, num_classes + 1, device=labels.device).masked_fill(~present, 2.0)
    ranks = order.argsort(dim=1).argsort(dim=1)
    chosen = present & (ranks < (present.sum(dim=1, keepdim=True) + 1) // 2)
    return chosen.gather(1, flat).reshape(labels.shape).unsqueeze(1)


def boxes(regions: Tensor) -> Tensor:
    """Return the bounding box of each region, nothing for an empty one.

    **Shape**: N x H x W bool -> N x 1 x H x W bool.
    """

    def between(marks: Tensor) -> Tensor:
        return (marks.cumsum(1) > 0) & (marks.flip(1).cumsum(1) > 0).flip(1)

    return between(regions.any(dim=2))[:, None, :, None] & between(regions.any(dim=1))[:, None, None, :]


def paste(maps: Tensor, kept: Tensor) -> Tensor:
    """Keep each image's pixels where ``kept``, and take the others from the next image of the batch.

    **Shape**: N x C x H x W and N x 1 x H x W bool -> N x C x H x W.
    """
    return torch.where(kept, maps, maps.roll(-1, dims=0))
