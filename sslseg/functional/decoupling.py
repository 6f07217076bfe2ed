"""Pairs of images, their mixture, and one image's mask out of the mixture's: the functions of GuidedMix-Net.

Tu et al., GuidedMix-Net, Secs. 3.1 and 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

REMAINDERS = ("raw", "clamp", "normalize")
BOUNDS = ("scale", "clip")


def nearest(vectors: Tensor, references: Tensor, number: int = 1) -> Tensor:
    """Return which references are most similar to each vector by Euclidean distance, the nearest first.

    **Shape**: M x D and N x D -> M x ``number`` int64 in [0, N).
    """
    # Multiplying matrices instead would lose small distances between long vectors.
    distances = torch.cdist(vectors, references, compute_mode="donot_use_mm_for_euclid_dist")  # Eq. (3)
    return distances.topk(number, dim=1, largest=False).indices


def nearest_other(vectors: Tensor) -> Tensor:
    """Return which of the other vectors is most similar to each.

    **Shape**: N x D, N at least 2 -> N int64.
    """
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")  # Eq. (3)
    return distances.fill_diagonal_(torch.inf).argmin(dim=1)


def any_reference(number: int, references: int, *, device: torch.device) -> Tensor:
    """Return a reference for each of ``number`` images, by chance.

    **Shape**: -> M int64 in [0, N).
    """
    return torch.randint(references, (number,), device=device)


def any_other(number: int, *, device: torch.device) -> Tensor:
    """Return one of the other places for each, by chance.

    **Shape**: -> N int64.
    """
    steps = torch.randint(1, number, (number,), device=device)
    return (torch.arange(number, device=device) + steps) % number


def draw_lambdas(number: int, *, alpha: float, largest: float, bound: str, device: torch.device) -> Tensor:
    """Draw lambda from Beta(alpha, alpha) for each pair, take min(lambda, 1 - lambda), and bound it.

    Args:
        largest: the bound, at most 0.5.
        bound: ``scale`` multiplies with 2 ``largest``, which for alpha = 1 draws uniformly below it; ``clip`` cuts off.

    **Shape**: -> N x 1 x 1 x 1 in [0, ``largest``].
    """
    shape = torch.full((number, 1, 1, 1), alpha, device=device)
    drawn = torch.distributions.Beta(shape, shape, validate_args=False).sample()
    smaller = torch.minimum(drawn, 1.0 - drawn)
    return 2.0 * largest * smaller if bound == "scale" else smaller.clamp_max(largest)


def blend(labeled: Tensor, others: Tensor, lambdas: Tensor | float) -> Tensor:
    """Return the mixture of pairs of images.

    **Shape**: N x 3 x H x W twice, N x 1 x 1 x 1 -> N x 3 x H x W.
    """
    return lambdas * labeled + (1.0 - lambdas) * others  # Eq. (2)


def decouple(mixed: Tensor, labeled: Tensor, share: Tensor | float, *, remainder: str = "raw") -> Tensor:
    """Take the labelled image's mask out of the mixture's.

    Args:
        share: of the labelled mask: 1 of hard decoupling, Eq. (7), lambda of soft decoupling, Eq. (8).
        remainder: ``raw``; ``clamp`` makes negative values 0; ``normalize`` also makes the classes' sum 1.

    **Shape**: N x C x H x W twice, N x 1 x 1 x 1 -> N x C x H x W.
    """
    left = mixed - share * labeled  # Eqs. (7), (8)
    if remainder == "raw":
        return left
    left = left.clamp_min(0.0)
    if remainder == "clamp":
        return left
    # The gradient of a product takes a third of the time of a quotient's.
    return left * left.sum(dim=1, keepdim=True).clamp_min(1e-6).reciprocal()


def present(labels: Tensor, num_classes: int) -> Tensor:
    """Return which classes each label map holds: the image-level labels.

    **Shape**: N x H x W int64, other values than classes are left out -> N x C float32.
    """
    known = (labels >= 0) & (labels < num_classes)
    found = torch.zeros(len(labels), num_classes + 1, device=labels.device)
    return found.scatter_(1, labels.where(known, num_classes).flatten(1), 1.0)[:, :num_classes]
