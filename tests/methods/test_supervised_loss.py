"""The supervised loss is the mean over labeled pixels, with OHEM over the kept ones, of every head of every model."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sslseg.config.files import load_model
from sslseg.config.fit import fit_model
from sslseg.methods.base import SemiSegmentor, data_sample
from sslseg.registry import MODELS, register_modules
from tests.methods.conftest import CLASSES, IGNORE, SIZE, labeled_view, segmentor

CROSS_ENTROPY = dict(type="CrossEntropyLoss")
AUXILIARY = dict(
    type="FCNHead",
    in_channels=64,
    in_index=2,
    channels=8,
    num_convs=1,
    dropout_ratio=0.0,
    num_classes=9,
    align_corners=False,
)


def model(method: str = "CutMix", **changes: Any) -> SemiSegmentor:
    """Return a method on the slim model, with an auxiliary head and further changes to the decode head."""
    config = segmentor()
    config.auxiliary_head = dict(AUXILIARY, loss_decode=[dict(CROSS_ENTROPY, loss_weight=0.4)])
    config.decode_head.update(changes)
    torch.manual_seed(0)
    fitted = fit_model(config, num_classes=CLASSES, ignore_index=IGNORE)
    return MODELS.build(dict(type=method, segmentor=fitted)).train()


def padded_view() -> dict[str, Any]:
    torch.manual_seed(1)
    view = labeled_view()
    view["labels"][:, -20:] = IGNORE
    view["data_samples"] = list(map(data_sample, view["labels"]))
    return view


def slow_losses(method: SemiSegmentor, view: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the cross entropy of each pixel of both heads, before any average."""
    features = method.student.extract_feat(view["inputs"])
    found = {}
    for name, head in (("decode", method.student.decode_head), ("aux", method.student.auxiliary_head)):
        logits = F.interpolate(head(features), SIZE, mode="bilinear", align_corners=False)
        found[name] = F.cross_entropy(logits, view["labels"], ignore_index=IGNORE, reduction="none")
    return found


def supervised(method: SemiSegmentor, view: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the losses, the same from a pass with other images and from the segmentor alone."""
    together = method.supervise(view, None)[0]
    alone = model_losses(method, view)
    assert together.keys() == alone.keys()
    for name, value in together.items():
        torch.testing.assert_close(alone[name], value)
    return together


def model_losses(method: SemiSegmentor, view: dict[str, Any]) -> dict[str, torch.Tensor]:
    losses = method.student.loss(view["inputs"], view["data_samples"])
    return {name: value for name, value in losses.items() if "loss" in name}


def test_the_loss_is_the_mean_over_labeled_pixels() -> None:
    method, view = model(), padded_view()
    losses, slow = supervised(method, view), slow_losses(method, view)
    counted = [tuple(pixel) for pixel in (view["labels"] != IGNORE).nonzero().tolist()]
    assert 0.2 < len(counted) / view["labels"].numel() < 0.6
    for name, weight in (("decode", 1.0), ("aux", 0.4)):
        expected = sum(slow[name][pixel] for pixel in counted) / len(counted)
        torch.testing.assert_close(losses[f"{name}.loss_ce"], weight * expected)


def test_pixels_without_a_label_change_neither_loss_nor_gradient() -> None:
    """More padding around the same labeled pixels: of the same logits, the same loss."""
    head = model().student.decode_head
    torch.manual_seed(2)
    logits, labels = torch.randn(2, CLASSES, 8, 8), torch.randint(0, CLASSES, (2, 8, 8))
    results = []
    for padding in (0, 5):
        given = F.pad(logits, (0, padding, 0, padding), value=9.0).requires_grad_()
        truth = F.pad(labels, (0, padding, 0, padding), value=IGNORE)
        loss = head.loss_by_feat(given, list(map(data_sample, truth)))["loss_ce"]
        loss.backward()
        results.append((loss.detach(), given.grad[..., :8, :8]))
        assert given.grad[..., 8:, :].abs().sum() == 0
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("thresh", [0.3, 0.05, None])
@pytest.mark.parametrize("min_kept", [50, 5000])
def test_ohem_is_the_mean_over_the_kept_pixels(thresh: float | None, min_kept: int) -> None:
    method = model(sampler=dict(type="OHEMPixelSampler", thresh=thresh, min_kept=min_kept))
    view = padded_view()
    values = slow_losses(method, view)["decode"].detach()
    ordered = sorted((float(values[tuple(pixel)]) for pixel in (view["labels"] != IGNORE).nonzero()), reverse=True)
    number = min(2 * min_kept, len(ordered))
    if thresh is not None:  # a probability below the threshold, at least `min_kept` an image
        number = max(number, sum(value > -math.log(thresh) for value in ordered))
    assert number < len(ordered) or min_kept == 5000
    losses = supervised(method, view)
    torch.testing.assert_close(losses["decode.loss_ce"].item(), sum(ordered[:number]) / number, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("thresh", [0.7, None])
def test_ohem_keeps_what_mmseg_keeps(thresh: float | None) -> None:
    from mmseg.structures.sampler import OHEMPixelSampler

    head = model(sampler=dict(type="OHEMPixelSampler", thresh=thresh, min_kept=300)).student.decode_head
    view = padded_view()
    logits = torch.randn(2, CLASSES, *SIZE)
    theirs = OHEMPixelSampler(head, thresh=thresh, min_kept=300)
    kept = head.sampler.sample(logits, view["labels"][:, None])
    assert 0 < kept.mean() < 1
    torch.testing.assert_close(kept, theirs.sample(logits, view["labels"][:, None]))


def logits_of(method: SemiSegmentor, view: dict[str, Any]) -> torch.Tensor:
    features = method.student.extract_feat(view["inputs"])
    return F.interpolate(method.student.decode_head(features), SIZE, mode="bilinear")


def test_class_weights_count_in_the_divisor() -> None:
    weights = [0.5, 1.0, 2.0, 4.0]
    method, view = model(loss_decode=dict(CROSS_ENTROPY, class_weight=weights)), padded_view()
    logits = logits_of(method, view)
    total, divisor = 0.0, 0.0
    for n, y, x in (view["labels"] != IGNORE).nonzero().tolist():
        truth = int(view["labels"][n, y, x])
        total -= weights[truth] * logits[n, :, y, x].log_softmax(0)[truth].item()
        divisor += weights[truth]
    torch.testing.assert_close(supervised(method, view)["decode.loss_ce"].item(), total / divisor, rtol=1e-4, atol=1e-5)


def test_binary_cross_entropies_average_over_labeled_pixels_and_classes() -> None:
    method, view = model(loss_decode=dict(CROSS_ENTROPY, use_sigmoid=True)), padded_view()
    logits = logits_of(method, view)
    terms = []
    for n, y, x in (view["labels"] != IGNORE).nonzero().tolist():
        for c in range(CLASSES):
            probability = logits[n, c, y, x].sigmoid().item()
            terms.append(-math.log(probability if c == view["labels"][n, y, x] else 1 - probability))
    expected = sum(terms) / len(terms)
    torch.testing.assert_close(supervised(method, view)["decode.loss_ce"].item(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", [None, dict(type="OHEMPixelSampler", thresh=0.7, min_kept=100)])
def test_without_any_label_the_loss_is_zero_and_its_gradient_too(sampler: Any) -> None:
    method, view = model(sampler=sampler), padded_view()
    view["labels"].fill_(IGNORE)
    view["data_samples"] = list(map(data_sample, view["labels"]))
    losses = supervised(method, view)
    assert all(value == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad is None or parameter.grad.eq(0).all() for parameter in method.parameters())


def test_losses_and_ohem_never_synchronize() -> None:
    method = model(
        sampler=dict(type="OHEMPixelSampler", thresh=0.7, min_kept=100),
        loss_decode=dict(CROSS_ENTROPY, class_weight=[1.0, 2.0, 1.0, 1.0]),
    )
    view = padded_view()
    with torch.profiler.profile() as profile:
        method.supervise(view, None)
    reads = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
    assert not [event.name for event in profile.events() if event.name in reads]


def test_a_model_of_the_user_s_own_averages_over_labeled_pixels(tmp_path: Path) -> None:
    register_modules()
    (tmp_path / "mine.py").write_text(
        "_base_ = 'mmseg::_base_/models/fcn_unet_s5-d16.py'\n"
        "model = dict(decode_head=dict(loss_decode=[dict(type='CrossEntropyLoss', avg_non_ignore=False),"
        " dict(type='DiceLoss')]), auxiliary_head=[dict(type='FCNHead', in_channels=128, in_index=3, channels=64)])\n"
    )
    config = fit_model(load_model(str(tmp_path / "mine.py")).model, num_classes=CLASSES, ignore_index=IGNORE)
    assert config.decode_head.loss_decode[0].avg_non_ignore is True
    assert "avg_non_ignore" not in config.decode_head.loss_decode[1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built = MODELS.build(config)
    assert not [one for one in caught if "avg_non_ignore" in str(one.message)]
    assert built.auxiliary_head[0].loss_decode.avg_non_ignore is True  # its config names no loss
    assert type(built.decode_head.loss_decode[0]).__module__ == "sslseg.networks.losses"
