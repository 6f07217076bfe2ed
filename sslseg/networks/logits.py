"""The logits of a segmentor at the size of its images, and the features before its classifier."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from sslseg.errors import UserError


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


def classifier_width(head: BaseDecodeHead) -> int:
    """Return how many channels the classifier of a decode head reads; a head without one is a UserError."""
    if not isinstance(getattr(head, "conv_seg", None), nn.Module):
        raise UserError(
            f"model.decode_head {type(head).__name__} has no single classifier whose features could be compared; use a"
            " model with another head"
        )
    return head.channels


@contextlib.contextmanager
def before_classifier(head: BaseDecodeHead) -> Iterator[list[Tensor]]:
    """Collect what enters the classifier of a decode head (before its dropout) whenever the head is called."""
    seen: list[Tensor] = []
    first = head.dropout if head.dropout is not None else head.conv_seg
    handle = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


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
