"""Nothing in a step's losses asks the host for a value of the device, in no method: it would wait for all work before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sslseg.config import config_names
from sslseg.methods.base import data_sample
from sslseg.registry import METHODS
from sslseg.split import Split
from sslseg.train import TrainOptions, build_config
from tests.methods.conftest import labeled_branch, other_branches

READS = ("aten::_local_scalar_dense", "aten::nonzero")
# Of these a step knows the number: U2PL's keys are counted once for all classes, before they are pushed.
KNOWN = {"u2pl/default": ["aten::nonzero"]}


def square(branch: dict[str, Any]) -> dict[str, Any]:
    """Make the crops square, which s4l asks for, and weight their pseudo-masks."""
    side = min(branch["inputs"].shape[-2:])
    branch = {key: value[..., :side] if torch.is_tensor(value) else value for key, value in branch.items()}
    if "labels" in branch:
        branch["data_samples"] = list(map(data_sample, branch["labels"]))
    return branch | dict(pseudo_weights=torch.rand(len(branch["inputs"]), side, side))


def batch_of(views: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    return {
        f"{stream}_{view}": square(
            labeled_branch(2, pseudo=True) if stream == "labeled" else other_branches(2, pseudo=True)[0]
        )
        for stream, names in views.items()
        for view in names
    }


@pytest.mark.parametrize("name", [name for name in config_names() if name.endswith("/default")])
def test_losses_never_ask_the_host(toy_split: Split, name: str) -> None:
    config = build_config(toy_split, TrainOptions(config=name, iters=100, pretrained="none"))
    config.model.decode_head.num_classes = 4
    model = METHODS.build(dict(config.method, segmentor=config.model)).train()
    model.begin()
    model.begin_step(90, 100)
    batch = batch_of(model.views)
    with torch.profiler.profile() as profile:
        losses = model.loss(batch)
    assert all(value.isfinite().all() for value in losses.values())
    assert [event.name for event in profile.events() if event.name in READS] == KNOWN.get(name, [])
