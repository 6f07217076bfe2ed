"""Methods on made-up batches: a small segmentor, and views as the loader and the preprocessor would give them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sslseg.config.files import load_model
from sslseg.config.fit import fit_model
from sslseg.methods.base import SemiSegmentor, data_sample
from sslseg.registry import MODELS, register_modules

CLASSES, IGNORE, SIZE = 4, 255, (40, 48)


def segmentor(model: str = "deeplabv3plus_r18s") -> Any:
    """Return a segmentor's config without dropout, so that a loss can be computed twice."""
    register_modules()
    config = fit_model(load_model(model).model, num_classes=CLASSES, ignore_index=IGNORE)
    if model.endswith("_r18s"):
        config.decode_head.dropout_ratio = 0.0
    return config


def build(method: str, seed: int = 0, model: str = "deeplabv3plus_r18s", **settings: Any) -> Any:
    """Build and initialize a method, ready for the first of 100 iterations."""
    register_modules()
    torch.manual_seed(seed)
    made = MODELS.build(dict(type=method, segmentor=segmentor(model), **settings))
    made.init_weights()
    with torch.no_grad():
        for parameter in made.parameters():  # initial zeros would hide gradients, small logits every threshold
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.initialize_ema()
    made.begin_training(100)
    made.train()
    return made


def methods() -> list[str]:
    """Return the names of all registered methods."""
    register_modules()
    MODELS.import_from_location()
    return sorted(name for name, found in MODELS.module_dict.items() if issubclass(found, SemiSegmentor))


def labels(number: int, *, ignored: float = 0.1) -> torch.Tensor:
    coarse = torch.randint(0, CLASSES, (number, SIZE[0] // 8, SIZE[1] // 8))
    maps = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    maps[torch.rand(maps.shape) < ignored] = IGNORE
    return maps


def labeled_view(number: int = 2, *, pseudo: bool = False) -> dict[str, Any]:
    truth = labels(number)
    view = dict(inputs=torch.randn(number, 3, *SIZE), labels=truth, data_samples=list(map(data_sample, truth)))
    return view | (dict(pseudo_masks=labels(number)) if pseudo else {})


def other_views(number: int = 3, *, pseudo: bool = False, geometry: bool = False) -> tuple[dict, dict]:
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


def square(view: dict[str, Any]) -> dict[str, Any]:
    """Crop a view to a square, which rotation needs."""
    side = min(view["inputs"].shape[-2:])
    view = {key: value[..., :side, :side] if torch.is_tensor(value) else value for key, value in view.items()}
    if "labels" in view:
        view["data_samples"] = list(map(data_sample, view["labels"]))
    return view


def batch_of(views: dict[str, tuple[str, ...]]) -> dict[str, dict[str, Any]]:
    """Return a batch of two square images for each view that a method declares, with weighted pseudo-masks."""
    batch = {}
    for stream, names in views.items():
        for name in names:
            view = labeled_view(2, pseudo=True) if stream == "labeled" else other_views(2, pseudo=True)[0]
            batch[f"{stream}_{name}"] = square(view | dict(pseudo_weights=torch.rand(2, *SIZE))) | dict(
                index=torch.arange(2)
            )
    return batch


def moved(method: SemiSegmentor, batch: dict[str, Any], *, iterations: int = 1) -> set[str]:
    """Train some iterations and return the names of all parameters and buffers that changed."""
    before = {name: value.clone() for name, value in method.state_dict().items()}
    learnable = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learnable, lr=0.1)
    for iteration in range(iterations):
        method.begin_iteration(iteration)
        optimizer.zero_grad()
        total(method.loss(batch)).backward()
        optimizer.step()
        method.after_iteration()
    return {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([value for name, value in losses.items() if "loss" in name]).sum()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(11)
