"""Pairs of images, their mixtures, and decoupling: the labeled image's mask is removed from the mixture's.

Tu et al., GuidedMix-Net, Secs. 3.1 and 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor


def global_average_pool(feature: Tensor) -> Tensor:
    """Return the mean over all positions.

    **Shape**: N x D x h x w -> N x D.
    """
    return feature.mean(dim=(2, 3))


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


def random_reference(number: int, references: int, *, device: torch.device) -> Tensor:
    """Return a random reference for each of ``number`` images.

    **Shape**: -> M int64 in [0, N).
    """
    return torch.randint(references, (number,), device=device)


def random_other(number: int, *, device: torch.device) -> Tensor:
    """Return for each index a random one of the others.

    **Shape**: -> N int64.
    """
    offsets = torch.randint(1, number, (number,), device=device)
    return (torch.arange(number, device=device) + offsets) % number


def sample_lambdas(
    number: int, *, alpha: float, largest: float, bound: str, mix_prob: float = 1.0, device: torch.device
) -> Tensor:
    """Sample lambda from Beta(alpha, alpha) for each pair, take min(lambda, 1 - lambda), and bound it.

    Args:
        largest: the bound, at most 0.5.
        bound: ``scale`` multiplies by 2 ``largest``, which is uniform below the bound for alpha = 1; ``clip`` clamps.
        mix_prob: probability that a pair is mixed; lambda of another is 0.

    **Shape**: -> N x 1 x 1 x 1 in [0, ``largest``].
    """
    shape = torch.full((number, 1, 1, 1), alpha, device=device)
    lambdas = torch.distributions.Beta(shape, shape, validate_args=False).sample()
    smaller = torch.minimum(lambdas, 1.0 - lambdas)
    bounded = 2.0 * largest * smaller if bound == "scale" else smaller.clamp_max(largest)
    return bounded if mix_prob >= 1.0 else bounded * (torch.rand_like(bounded) < mix_prob)


def blend(labeled: Tensor, others: Tensor, lambdas: Tensor | float) -> Tensor:
    """Return the mixture of pairs of images.

    **Shape**: N x 3 x H x W twice, N x 1 x 1 x 1 -> N x 3 x H x W.
    """
    return lambdas * labeled + (1.0 - lambdas) * others  # Eq. (2)


def decouple(mixed: Tensor, labeled: Tensor, weight: Tensor | float, *, renormalize: str = "raw") -> Tensor:
    """Subtract the labeled image's mask from the mixture's.

    Args:
        weight: of the labeled mask: 1 for hard decoupling, Eq. (7), lambda for soft decoupling, Eq. (8).
        renormalize: ``raw`` returns the difference; ``clamp`` sets negative values to 0; ``normalize`` also makes the
            sum over classes 1.

    **Shape**: N x C x H x W twice, N x 1 x 1 x 1 -> N x C x H x W.
    """
    difference = mixed - weight * labeled  # Eqs. (7), (8)
    if renormalize == "raw":
        return difference
    difference = difference.clamp_min(0.0)
    if renormalize == "clamp":
        return difference
    # The gradient of a product takes a third of the time of a quotient's.
    return difference * difference.sum(dim=1, keepdim=True).clamp_min(1e-6).reciprocal()


def spread_remainder(difference: Tensor) -> Tensor:
    """Make values that are not negative a distribution: what their sum lacks to 1 is the same for all classes.

    The positive part of M_mix - M_l sums to the total variation distance of both: where they agree nothing is left, and
    dividing by next to nothing would call the rest confident.

    **Shape**: N x C x H x W -> the same.
    """
    missing = 1.0 - difference.sum(dim=1, keepdim=True)
    return difference + missing.clamp_min(0.0) / difference.shape[1]


def image_level_labels(labels: Tensor, num_classes: int) -> Tensor:
    """Return which classes each label map contains.

    **Shape**: N x H x W int64, values that are not classes are left out -> N x C float32.
    """
    is_class = (labels >= 0) & (labels < num_classes)
    found = torch.zeros(len(labels), num_classes + 1, device=labels.device)
    return found.scatter_(1, labels.where(is_class, num_classes).flatten(1), 1.0)[:, :num_classes]
