"""No method's losses synchronize GPU and CPU: reading a value of the GPU would wait for all work before it."""

from __future__ import annotations

import pytest
import torch

from sslseg.config.build import TrainOptions, build_config
from sslseg.plugins import config_paths
from sslseg.registry import MODELS
from sslseg.splits.split import Split
from tests.methods.conftest import batch_of

READS = ("aten::_local_scalar_dense", "aten::nonzero")
# U2PL needs the number of its new keys once for all classes, before they enter the memory bank.
ALLOWED = {"u2pl/default": ["aten::nonzero"]}


@pytest.mark.parametrize("name", [name for name in config_paths() if name.endswith("/default")])
def test_losses_never_synchronize(toy_split: Split, name: str) -> None:
    config = build_config(toy_split, TrainOptions(config=name, iterations=100, pretrained="none"))
    config.model.decode_head.num_classes = 4
    model = MODELS.build(dict(config.method, segmentor=config.model)).train()
    model.initialize_ema()
    model.begin_training(100)
    model.begin_iteration(90)
    batch = batch_of(model.views)
    with torch.profiler.profile() as profile:
        losses = model.loss(batch)
    assert all(value.isfinite().all() for value in losses.values())
    assert [event.name for event in profile.events() if event.name in READS] == ALLOWED.get(name, [])
