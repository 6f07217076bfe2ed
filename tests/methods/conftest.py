"""Methods on made-up batches: a small segmentor, and branches as the loader and the preprocessor would give them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sslseg.config import fit_model, load_model
from sslseg.methods.base import SemiSegmentor, data_sample
from sslseg.registry import METHODS, import_mmseg

CLASSES, IGNORE, SIZE = 4, 255, (40, 48)


def segmentor(model: str = "deeplabv3plus_r18s") -> Any:
    """Return a segmentor's config without dropout, so that a loss can be computed twice."""
    import_mmseg()
    config = fit_model(load_model(model), num_classes=CLASSES, ignore_index=IGNORE)
    if model.endswith("_r18s"):
        config.decode_head.dropout_ratio = 0.0
    return config


def build(method: str, seed: int = 0, model: str = "deeplabv3plus_r18s", **arguments: Any) -> Any:
    """Build and initialise a method, ready for its first step."""
    import_mmseg()
    torch.manual_seed(seed)
    made = METHODS.build(dict(type=method, segmentor=segmentor(model), **arguments))
    made.init_weights()
    with torch.no_grad():
        for parameter in made.parameters():  # initial zeros would hide gradients, small scores every threshold
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.begin()
    made.train()
    return made


def labels(number: int, *, ignored: float = 0.1) -> torch.Tensor:
    drawn = torch.randint(0, CLASSES, (number, SIZE[0] // 8, SIZE[1] // 8))
    maps = drawn.repeat_interleave(8, 1).repeat_interleave(8, 2)
    maps[torch.rand(maps.shape) < ignored] = IGNORE
    return maps


def labeled_branch(number: int = 2, *, pseudo: bool = False) -> dict[str, Any]:
    truth = labels(number)
    branch = dict(inputs=torch.randn(number, 3, *SIZE), labels=truth, data_samples=list(map(data_sample, truth)))
    return branch | (dict(pseudo_masks=labels(number)) if pseudo else {})


def other_branches(number: int = 3, *, pseudo: bool = False, geometry: bool = False) -> tuple[dict, dict]:
    """Return a weak and a strong view; with ``geometry`` the strong one is shifted by three pixels to the left."""
    weak = dict(inputs=torch.randn(number, 3, *SIZE), valid=torch.ones(number, *SIZE, dtype=torch.bool))
    weak["valid"][:, -6:] = False
    strong = dict(inputs=weak["inputs"] + 0.3 * torch.randn_like(weak["inputs"]), valid=weak["valid"].clone())
    if geometry:
        strong["matrix"] = torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 0.0]]).repeat(number, 1, 1)
        strong["valid"] = torch.zeros_like(weak["valid"])
        strong["valid"][:, :, :-3] = weak["valid"][:, :, 3:]
    if pseudo:
        weak["pseudo_masks"] = labels(number)
        strong["pseudo_masks"] = labels(number)
    return weak, strong


def moved(method: SemiSegmentor, batch: dict[str, Any], *, steps: int = 1) -> set[str]:
    """Take optimisation steps and return the names of all parameters and buffers that changed."""
    before = {name: value.clone() for name, value in method.state_dict().items()}
    learnable = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learnable, lr=0.1)
    for step in range(steps):
        method.begin_step(step, 100)
        optimizer.zero_grad()
        total(method.loss(batch)).backward()
        optimizer.step()
        method.after_step()
    return {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([value for name, value in losses.items() if "loss" in name]).sum()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(11)
