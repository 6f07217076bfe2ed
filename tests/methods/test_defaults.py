"""Every registered method works with its own defaults, which are those of its paper."""

from __future__ import annotations

import pytest
import torch

from sslseg.registry import MODELS
from tests.methods.conftest import batch_of, methods, segmentor, total


@pytest.mark.parametrize("name", methods())
def test_a_method_needs_no_settings(name: str) -> None:
    method = MODELS.get(name)(segmentor=segmentor())
    method.init_weights()
    method.initialize_ema()
    method.begin_training(100, 10)
    method.train()
    for iteration in (0, 90):  # before and after every rampup and warmup
        method.begin_iteration(iteration)
        losses = method.loss(batch_of(method.views))
        assert all(value.isfinite().all() for value in losses.values()), losses
        total(losses).backward()
        method.after_iteration()


@pytest.mark.parametrize("name", methods())
def test_bare_passes_reach_every_parameter(name: str) -> None:
    method = MODELS.get(name)(segmentor=segmentor())
    method.begin_training(100, 10)
    method.train()
    outputs = method.bare_passes(batch_of(method.views))
    torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
    learnable = {name: value for name, value in method.named_parameters() if value.requires_grad}
    assert [name for name, value in learnable.items() if value.grad is None] == []
