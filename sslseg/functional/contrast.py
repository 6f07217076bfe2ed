"""Reliable and unreliable pixels, and the contrast between classes that uses both, for all classes at once.

Wang et al., Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels, CVPR 2022, Secs. 3.2 and 3.3. The paper
gives each class in turn its loop; here classes are a dimension of the tensors, and only their number is known to the host.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def quantile(values: Tensor, counted: Tensor, share: float) -> Tensor:
    """Return the ``share`` quantile of the counted values, interpolated linearly; infinite where none counts.

    Without waiting for the device, as indexing with ``counted`` would, and of any number of values.

    **Shape**: any, the same bool -> scalar.
    """
    ordered = values.masked_fill(~counted, torch.inf).flatten().sort().values
    position = share * (counted.sum() - 1).clamp_min(0).double()
    low = position.floor()
    below, above = ordered.take(low.long()), ordered.take(position.ceil().long())  # brackets would ask the host
    return below.where(below == above, below.lerp(above, (position - low).to(values.dtype)))


def among_first(probabilities: Tensor, rank: int) -> Tensor:
    """Return 1[O(c) < rank]: whether a class is among a pixel's ``rank`` most probable ones, without sorting all.

    **Shape**: P x C -> P x C bool.
    """
    classes = probabilities.shape[1]
    if not 0 < rank < classes:
        return torch.full_like(probabilities, rank > 0, dtype=torch.bool)
    first = 2 * rank <= classes
    chosen = probabilities.topk(rank if first else classes - rank, dim=1, largest=first).indices
    return torch.full_like(probabilities, not first, dtype=torch.bool).scatter_(1, chosen, first)


def anchor_classes(probabilities: Tensor, labels: Tensor, counted: Tensor, threshold: float) -> Tensor:
    """Return the class whose anchor a pixel may be, Eqs. (9) to (11), C where it may be none.

    Args:
        labels: true or pseudo-label; any value where ``counted`` is False.
        threshold: delta_p.

    **Shape**: P x C, P int64 and P bool -> P int64.
    """
    classes = probabilities.shape[1]
    labels = labels.where(counted, 0)
    likely = probabilities.gather(1, labels[:, None])[:, 0] > threshold
    return labels.where(counted & likely, classes)


def belonging(classes: Tensor, num_classes: int) -> Tensor:
    """Return which class each pixel is of; unlike torch's one_hot, without the host looking at the values.

    **Shape**: P int64 -> P x C bool.
    """
    return classes[:, None] == torch.arange(num_classes, device=classes.device)


def centers(features: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the sum of each class's features and their number, of which Eq. (12) is the quotient.

    **Shape**: P x D and P int64 -> C x D and C.
    """
    members = belonging(classes, num_classes).to(features.dtype)
    return members.mT @ features, members.sum(dim=0)


def labeled_negatives(probabilities: Tensor, labels: Tensor, counted: Tensor, low: int) -> Tensor:
    """Return n^l, Eq. (14): the classes that a labelled pixel is not, but might be taken for.

    **Shape**: P x C, P int64 and P bool -> P x C bool.
    """
    return among_first(probabilities, low) & ~belonging(labels, probabilities.shape[1]) & counted[:, None]


def unlabeled_negatives(probabilities: Tensor, chosen: Tensor, low: int, high: int) -> Tensor:
    """Return n^u, Eq. (15): the classes that a chosen (unreliable) pixel probably is not.

    **Shape**: P x C and P bool -> P x C bool.
    """
    return among_first(probabilities, high) & ~among_first(probabilities, low) & chosen[:, None]


def sample_anchors(classes: Tensor, number: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Draw ``number`` anchors of each class, with replacement, and count the candidates.

    **Shape**: P int64 in [0, C] -> C x M pixel indices (of no meaning where a class has no candidate) and C.
    """
    order = classes.argsort(stable=True)
    counts = classes.new_zeros(num_classes + 1).scatter_add_(0, classes, torch.ones_like(classes))[:num_classes]
    starts = counts.cumsum(0) - counts
    return order[(starts[:, None] + draws(counts, number)).clamp_max_(len(classes) - 1)], counts


def draws(counts: Tensor, *shape: int) -> Tensor:
    """Draw whole numbers below each class's count, 0 where it is 0.

    **Shape**: C -> C x shape int64.
    """
    limits = counts.reshape(-1, *[1] * len(shape))
    share = torch.rand(len(counts), *shape, device=counts.device)
    return (share * limits).long().minimum(limits - 1).clamp_min_(0)


def info_nce(anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return the term of Eq. (4) of each anchor.

    **Shape**: C x M x D, C x D and C x M x N x D, all of length 1 along D -> C x M.
    """
    positive = anchors @ positives[:, :, None] / temperature
    negative = (negatives @ anchors[..., None])[..., 0] / temperature
    return torch.cat((positive, negative), dim=2).logsumexp(dim=2) - positive[..., 0]


def binary(anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return the term of Eq. (A1) of each anchor: as ``info_nce``, but for one negative at a time."""
    positive = anchors @ positives[:, :, None] / temperature
    negative = (negatives @ anchors[..., None])[..., 0] / temperature
    return F.softplus(negative - positive).mean(dim=2)
