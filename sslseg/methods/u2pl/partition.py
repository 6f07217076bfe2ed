"""The partition of pixels: reliable ones are pseudo-labels and anchors, unreliable ones are negatives.

Wang et al., Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels, CVPR 2022, Secs. 3.2 and 3.3. The
paper loops over classes; here classes are a dimension of the tensors, and nothing synchronizes GPU and CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslseg.functional.consistency import mean

Reliability = Literal["unreliable", "reliable", "all"]


class Partition(NamedTuple):
    """The label of each pixel and its use.

    **Shape**: N x H x W each, or P each.
    """

    labels: Tensor  # int64: ground truth, or the pseudo-label y-hat
    reliable: Tensor  # bool: where the label is used
    negative: Tensor  # bool: where negatives may come from


def dynamic_proportion(initial: float, *, iteration: int, iterations: int, iterations_per_epoch: int) -> float:
    """Return alpha_t, the proportion of unreliable pixels, from alpha_0; it changes at the start of each epoch.

    Args:
        iteration: the present one, from 0.
        iterations: of the whole training, which may end within an epoch.
    """
    epoch = iteration // iterations_per_epoch
    return initial * (1.0 - epoch * iterations_per_epoch / iterations)  # Eq. (7)


def quantile(values: Tensor, valid_mask: Tensor, fraction: float) -> Tensor:
    """Return a quantile of the valid values, interpolated linearly; infinite if there are none.

    Indexing with ``valid_mask`` would synchronize, and ``torch.quantile`` takes at most 16 million values.

    **Shape**: any, the same bool -> scalar.
    """
    ordered = values.masked_fill(~valid_mask, torch.inf).flatten().sort().values
    position = fraction * (valid_mask.sum() - 1).clamp_min(0).double()
    low = position.floor()
    below, above = ordered.take(low.long()), ordered.take(position.ceil().long())  # indexing would synchronize
    return below.where(below == above, below.lerp(above, (position - low).to(values.dtype)))


def partition_pixels(
    entropy: Tensor, pseudo_labels: Tensor, valid_mask: Tensor, *, alpha: float, reliability: Reliability = "unreliable"
) -> Partition:
    """Split unlabeled pixels by their entropy, of which the highest ``alpha`` is unreliable.

    Args:
        reliability: which pixels may be negatives (Table 4).

    **Shape**: N x H x W float, int64 and bool -> N x H x W each.
    """
    gamma = quantile(entropy, valid_mask, 1.0 - alpha)
    reliable = valid_mask & (entropy < gamma)  # Eq. (6)
    if reliability == "all":
        negative = valid_mask
    elif reliability == "reliable":
        negative = valid_mask & (entropy < quantile(entropy, valid_mask, alpha))
    else:
        negative = valid_mask & (entropy > gamma)
    return Partition(pseudo_labels, reliable, negative)


def adaptive_weight(reliable: Tensor, eta: float) -> Tensor:
    """Return lambda_u, the weight of L_u: eta, divided by the fraction of reliable pixels.

    **Shape**: N x H x W bool -> scalar.
    """
    fraction = mean(reliable.float(), torch.ones_like(reliable))
    return eta / fraction.clamp_min(1e-6)  # Eq. (8)


def flatten_at(size: Sequence[int], *parts: Partition) -> Partition:
    """Join the partitions of several batches, resized by nearest neighbor to the ``size`` of the features.

    **Shape**: N x H x W of each part -> P.
    """
    maps = torch.cat([torch.stack(part, dim=1) for part in parts]).float()
    labels, reliable, negative = F.interpolate(maps, list(size), mode="nearest").long().transpose(0, 1).flatten(1)
    return Partition(labels, reliable.bool(), negative.bool())


def anchor_classes(probabilities: Tensor, labels: Tensor, valid_mask: Tensor, threshold: float) -> Tensor:
    """Return the class c whose candidates A_c a pixel belongs to, C if it is not a candidate.

    Args:
        labels: ground truth or pseudo-labels; any value where ``valid_mask`` is False.
        threshold: delta_p.

    **Shape**: P x C, P int64 and P bool -> P int64.
    """
    classes = probabilities.shape[1]
    labels = labels.where(valid_mask, 0)
    likely = probabilities.gather(1, labels[:, None])[:, 0] > threshold
    return labels.where(valid_mask & likely, classes)  # Eqs. (9), (10) and (11)


def fitted_ranks(low: int, high: int, num_classes: int) -> tuple[int, int]:
    """Return the probability rank thresholds r_l and r_h for so many classes.

    r_h is at most their number. r_l is smaller, so that the least probable class can always be a negative.
    """
    return min(low, num_classes - 1), min(high, num_classes)


def in_top_k(probabilities: Tensor, k: int) -> Tensor:
    """Return 1[O(c) < k]: whether a class is among the ``k`` most probable ones of a pixel, without a full sort.

    **Shape**: P x C -> P x C bool.
    """
    classes = probabilities.shape[1]
    if not 0 < k < classes:
        return torch.full_like(probabilities, k > 0, dtype=torch.bool)
    largest = 2 * k <= classes
    indices = probabilities.topk(k if largest else classes - k, dim=1, largest=largest).indices
    return torch.full_like(probabilities, not largest, dtype=torch.bool).scatter_(1, indices, largest)


def one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """Return the one-hot encoding; unlike torch's, it does not synchronize, and other values than classes give zeros.

    **Shape**: P int64 -> P x C bool.
    """
    return classes[:, None] == torch.arange(num_classes, device=classes.device)


def labeled_negatives(probabilities: Tensor, labels: Tensor, valid_mask: Tensor, low: int) -> Tensor:
    """Return n^l: the classes that a labeled pixel is not, but is easily confused with.

    **Shape**: P x C, P int64 and P bool -> P x C bool.
    """
    others = ~one_hot(labels, probabilities.shape[1])
    return others & in_top_k(probabilities, low) & valid_mask[:, None]  # Eq. (14)


def unlabeled_negatives(probabilities: Tensor, candidates: Tensor, low: int, high: int) -> Tensor:
    """Return n^u: the classes that a candidate (an unreliable pixel) probably is not.

    **Shape**: P x C and P bool -> P x C bool.
    """
    return candidates[:, None] & in_top_k(probabilities, high) & ~in_top_k(probabilities, low)  # Eq. (15)


def negative_classes(
    probabilities: Tensor, pixels: Partition, *, labeled: int, ranks: tuple[int, int] | None
) -> Tensor:
    """Return n: the classes that each pixel is a negative of.

    Args:
        labeled: how many of the pixels, the first ones, are of labeled images.
        ranks: r_l and r_h; None: no thresholds.

    **Shape**: P x C and P each -> P x C bool.
    """
    labels, reliable, negative = pixels
    classes = probabilities.shape[1]
    low, high = ranks or (0, classes)
    own = labeled_negatives(probabilities[:labeled], labels[:labeled], reliable[:labeled], low if ranks else classes)
    others = unlabeled_negatives(probabilities[labeled:], negative[labeled:], low, high)
    return torch.cat((own, others))  # Eq. (13)
