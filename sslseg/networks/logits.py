"""The logits of a segmentor at the size of its images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn


def resize_logits(logits: Tensor, size: tuple[int, ...], *, align_corners: bool) -> Tensor:
    """Return ``logits`` at the size of the image in float32, as mmseg resizes them."""
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=align_corners)


def logits_of(segmentor: EncoderDecoder, features: Any, size: tuple[int, ...]) -> Tensor:
    """Return the decode head's logits of ``features``, resized to ``size``.

    **Shape**: -> N x C x H x W float32.
    """
    head = segmentor.decode_head
    return resize_logits(head(features), size, align_corners=head.align_corners)


def encoder_width(segmentor: EncoderDecoder) -> int:
    """Return how many channels the last feature of a segmentor's encoder has."""
    was_training = segmentor.training
    with torch.no_grad():
        features = segmentor.eval().extract_feat(torch.zeros(1, 3, 64, 64))
    segmentor.train(was_training)
    return features[-1].shape[1]


def head_outputs(segmentor: EncoderDecoder, images: Tensor, *heads: nn.Module) -> list[Tensor]:
    """Return the outputs of all heads of a segmentor, and of further ``heads`` on the same features.

    **Shape**: N x 3 x H x W -> one tensor for each head.
    """
    features = segmentor.extract_feat(images)
    every = [segmentor.decode_head, *heads]
    if segmentor.with_auxiliary_head:
        auxiliary = segmentor.auxiliary_head
        every += auxiliary if isinstance(auxiliary, nn.ModuleList) else [auxiliary]
    return [head(features) for head in every]
