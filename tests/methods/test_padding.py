"""What networks predict on padding reaches no loss, wherever mixing, rotating and comparing take it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmseg.models.segmentors import EncoderDecoder

from sslseg.methods.base import data_sample
from tests.methods.conftest import IGNORE, build, labeled_view, other_views, square

PADDING = 9.0  # the value of padded pixels here, by which they are recognized after any mixing
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("Supervised", {}),
    ("AdvSSL", dict(discriminator=dict(width=4), semi_weight=0.1, threshold=0.3)),
    ("S4L", dict(classifier=dict(width=4))),
    ("SelfTraining", {}),
    ("FixMatch", dict(threshold=0.3)),
    ("UniMatchV2", dict(threshold=0.3, dropout=False)),
    ("UniMatch", dict(threshold=0.3)),
    *(
        ("CutMix", dict(mix=mix, consistency=consistency, per_pixel=per_pixel, threshold=0.3))
        for mix, consistency, per_pixel in (
            ("cutmix", "mse", False),
            ("cutmix", "hard", True),
            ("cutout", "ce", False),
            ("classmix", "ce", False),
        )
    ),
]


def padded(view: dict[str, Any]) -> dict[str, Any]:
    """Return a square view whose first image is padded at the right and at the bottom."""
    view = square(view)
    band = torch.zeros(view["inputs"].shape[-2:], dtype=torch.bool)
    band[-14:], band[:, -9:] = True, True
    view["inputs"][0, :, band] = PADDING
    if "valid" in view:
        view["valid"][:] = True
        view["valid"][0] = ~band
    for name in view.keys() & {"labels", "pseudo_masks"}:
        view[name][0, band] = IGNORE
    if "labels" in view:
        view["data_samples"] = list(map(data_sample, view["labels"]))
    return view


def predict_noise_on_padding(network: EncoderDecoder, seed: int) -> None:
    """Let a segmentor predict at the images' size, and anything on padded pixels."""
    seen: list[torch.Tensor] = []
    generator = torch.Generator().manual_seed(seed)

    def see(module: Any, inputs: tuple[torch.Tensor]) -> None:
        seen[:] = [(inputs[0] == PADDING).all(dim=1, keepdim=True)]

    def predict(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        logits = F.interpolate(logits, seen[0].shape[-2:], mode="bilinear", align_corners=False)
        mask = (
            torch.cat((seen[0], seen[0][len(seen[0]) * 2 - len(logits) :])) if len(logits) > len(seen[0]) else seen[0]
        )
        return logits.where(~mask, 20.0 * torch.randn(logits.shape, generator=generator))

    network.backbone.register_forward_pre_hook(see)
    network.decode_head.register_forward_hook(predict)


@pytest.mark.parametrize(("name", "settings"), METHODS, ids=lambda value: str(value))
def test_losses_do_not_depend_on_predictions_of_padding(name: str, settings: dict[str, Any]) -> None:
    results = []
    for seed in (1, 2):
        method = build(name, **settings)
        method.begin_iteration(90)
        weak, strong = map(padded, other_views(pseudo=name == "SelfTraining"))
        views = dict(labeled_weak=padded(labeled_view()), unlabeled_weak=weak, unlabeled_strong=strong)
        views["unlabeled_strong_2"] = strong
        streams = [f"{stream}_{view}" for stream, names in method.views.items() for view in names]
        for network in (method.student, *([method.teacher.network] if method.teacher else [])):
            predict_noise_on_padding(network, seed)
        torch.manual_seed(0)
        results.append(method.loss({stream: views[stream] for stream in streams}))
    assert all(value > 0 for key, value in results[0].items() if "loss" in key)
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)
