"""The pyramid neck and the MITrans head: Eqs. (4), (5) and Fig. 4 of GuidedMix-Net against slow references."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sslseg.config.files import load_model
from sslseg.config.fit import fit_model
from sslseg.errors import UserError
from sslseg.methods.guidedmix import MITransHead, PyramidPooling, decoupling
from sslseg.methods.guidedmix.mitrans import MITrans, NonLocal
from sslseg.registry import MODELS, register_modules


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


def noisy(module: torch.nn.Module) -> torch.nn.Module:
    """Give a module weights that differ from its initial ones, of which some are zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def test_the_non_local_block_equals_equation_5() -> None:
    block, feature = noisy(NonLocal(6)), torch.randn(2, 6, 3, 4)
    query, key, value = (
        torch.einsum("oi,nihw->nohw", layer.weight[..., 0, 0], feature)
        + (0 if layer.bias is None else layer.bias[:, None, None])
        for layer in (block.query, block.key, block.value)
    )
    assert query.shape[1] == key.shape[1] == 3
    expected = feature.clone()
    for image in range(2):
        for n in range(12):
            weights = [
                torch.exp(query[image, :, n // 4, n % 4] @ key[image, :, m // 4, m % 4] / 3**0.5) for m in range(12)
            ]
            for m in range(12):
                expected[image, :, n // 4, n % 4] += weights[m] / sum(weights) * value[image, :, m // 4, m % 4]
    torch.testing.assert_close(block(feature), expected)


def test_a_fresh_non_local_block_is_the_identity() -> None:
    feature = torch.randn(2, 6, 3, 4)
    assert torch.equal(NonLocal(6)(feature), feature)


@pytest.mark.parametrize(("attention", "factor"), [(True, 2), (False, 2), (True, 1)])
def test_a_block_attends_upsamples_and_fuses_the_lower_level(attention: bool, factor: int) -> None:
    block = noisy(MITrans(6, 5, 4, factor=factor, attention=attention, norm_cfg=None))
    # A lower level of odd size: the backbone rounded up.
    feature, skip = torch.randn(2, 6, 3, 4), torch.randn(2, 5, 3 * factor - (factor > 1), 4 * factor)
    attended = block.attention(feature) if attention else feature
    wide = F.conv2d(attended, block.enlarge.upsample_conv.weight, block.enlarge.upsample_conv.bias)
    upsampled = torch.zeros(2, 4, 3 * factor, 4 * factor)
    for row in range(3 * factor):
        for column in range(4 * factor):
            part = row % factor * factor + column % factor
            upsampled[:, :, row, column] = wide[:, part :: factor * factor, row // factor, column // factor]
    joined = torch.cat((upsampled.relu()[:, :, : skip.shape[2]], skip), dim=1)
    for layer in block.fuse:
        joined = F.conv2d(joined, layer.conv.weight, layer.conv.bias, padding=1).relu()
    torch.testing.assert_close(block(feature, skip), joined)


def test_attention_reaches_every_position_and_convolutions_do_not() -> None:
    for attention in (True, False):
        block = noisy(MITrans(6, 5, 4, factor=2, attention=attention, norm_cfg=None))
        feature = torch.randn(1, 6, 9, 9, requires_grad=True)
        block(feature, torch.randn(1, 5, 18, 18))[0, :, 0, 0].sum().backward()
        assert bool(feature.grad[0, :, -1, -1].any()) is attention


def test_the_pyramid_replaces_the_last_feature_only() -> None:
    neck = noisy(PyramidPooling(6, 4, pool_scales=(1, 2)))
    features = [torch.randn(2, 3, 8, 8), torch.randn(2, 6, 4, 4)]
    levels = neck(features)
    assert levels[0] is features[0]
    parts = [features[1]]
    for scale, stage in zip((1, 2), neck.pyramid, strict=True):
        means = torch.zeros(2, 6, scale, scale)
        for row in range(scale):
            for column in range(scale):
                side = 4 // scale
                window = features[1][:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
                means[:, :, row, column] = window.mean(dim=(2, 3))
        small = F.conv2d(means, stage[1].conv.weight, stage[1].conv.bias).relu()
        parts.append(F.interpolate(small, (4, 4), mode="bilinear", align_corners=False))
    fused = F.conv2d(torch.cat(parts, dim=1), neck.fuse.conv.weight, neck.fuse.conv.bias, padding=1).relu()
    torch.testing.assert_close(levels[1], fused)


@pytest.mark.parametrize(("name", "size"), [("mitrans_r18s", (50, 71)), ("mitrans_r50", (65, 97))])
def test_presets_decode_images_of_any_size_at_a_quarter_of_it(name: str, size: tuple[int, int]) -> None:
    register_modules()
    config = fit_model(load_model(name).model, num_classes=7, ignore_index=255)
    config.pop("pretrained", None)
    for part in (config.backbone, config.neck, config.decode_head):
        part.norm_cfg = dict(type="BN")
    segmentor = MODELS.build(config).eval()
    with torch.no_grad():
        features = segmentor.extract_feat(torch.randn(1, 3, *size))
        logits = segmentor.decode_head(features)
    assert [feature.shape[1] for feature in features] == list(config.decode_head.in_channels)
    assert logits.shape == (1, 7, -(-size[0] // 4), -(-size[1] // 4))
    for stride, feature in zip(config.decode_head.strides, features, strict=True):
        assert feature.shape[2:] == tuple(-(-side // stride) for side in size)


def test_strides_that_do_not_fit_are_refused() -> None:
    for strides in ((4, 8), (4, 6, 12), (8, 4, 16)):
        with pytest.raises(UserError, match=r"decode_head\.strides"):
            MITransHead(in_channels=[2, 3, 4], in_index=[0, 1, 2], strides=strides, channels=4, num_classes=3)


@pytest.mark.parametrize("number", [1, 3])
def test_the_nearest_references_are_the_true_ones(number: int) -> None:
    vectors, references = torch.randn(5, 8), torch.randn(6, 8)
    vectors[2] = references[4] + 1e-4  # among long vectors a small distance counts, too
    vectors += 100.0
    references += 100.0
    for row, found in enumerate(decoupling.nearest(vectors, references, number).tolist()):
        distances = [
            sum((a - b) ** 2 for a, b in zip(vectors[row].tolist(), r.tolist(), strict=True)) ** 0.5 for r in references
        ]
        assert found == sorted(range(6), key=distances.__getitem__)[:number]


def test_the_nearest_other_is_never_the_image_itself() -> None:
    vectors = torch.randn(5, 8)
    for row, found in enumerate(decoupling.nearest_other(vectors).tolist()):
        others = [n for n in range(5) if n != row]
        assert found == min(others, key=lambda n: (vectors[row] - vectors[n]).norm().item())
    for _ in range(20):
        partners = decoupling.random_other(4, device=torch.device("cpu"))
        assert all(0 <= other < 4 and other != index for index, other in enumerate(partners.tolist()))
    seen = {tuple(decoupling.random_other(3, device=torch.device("cpu")).tolist()) for _ in range(100)}
    assert len(seen) == 2**3


@pytest.mark.parametrize("largest", [0.5, 0.3, 0.1])
def test_lambda_lies_below_its_bound(largest: float) -> None:
    settings = dict(largest=largest, device=torch.device("cpu"))
    scaled = decoupling.sample_lambdas(20000, alpha=1.0, bound="scale", **settings)
    assert scaled.shape == (20000, 1, 1, 1)
    # alpha = 1: uniform below the bound.
    counts = scaled.flatten().histc(5, 0.0, largest) / 20000
    torch.testing.assert_close(counts, torch.full((5,), 0.2), atol=0.02, rtol=0.0)
    clipped = decoupling.sample_lambdas(20000, alpha=1.0, bound="clip", **settings)
    assert float(clipped.max()) == pytest.approx(largest, abs=1e-3)
    assert float((clipped >= largest).float().mean()) == pytest.approx(1.0 - 2.0 * largest, abs=0.02)
    peaked = decoupling.sample_lambdas(20000, alpha=8.0, bound="scale", **settings)
    assert peaked.mean() > 1.5 * scaled.mean()


def test_a_pair_is_mixed_with_a_probability() -> None:
    settings = dict(alpha=1.0, largest=0.4, bound="scale", device=torch.device("cpu"))
    lambdas = decoupling.sample_lambdas(20000, mix_prob=0.3, **settings).flatten()
    mixed = lambdas[lambdas > 0]
    assert len(mixed) / 20000 == pytest.approx(0.3, abs=0.02)
    torch.testing.assert_close(mixed.histc(5, 0.0, 0.4) / len(mixed), torch.full((5,), 0.2), atol=0.03, rtol=0.0)
    assert not decoupling.sample_lambdas(100, mix_prob=0.0, **settings).any()
    assert bool((decoupling.sample_lambdas(100, **settings) > 0).all())


def test_mixing_and_decoupling_equal_the_equations() -> None:
    labeled, others, lambdas = torch.randn(3, 2, 2, 2), torch.randn(3, 2, 2, 2), torch.rand(3, 1, 1, 1) / 2
    mixed, masks = torch.rand(3, 4, 2, 2), torch.rand(3, 4, 2, 2)
    blended = decoupling.blend(labeled, others, lambdas)
    soft = decoupling.decouple(mixed, masks, lambdas)
    hard = decoupling.decouple(mixed, masks, 1.0)
    clamped = decoupling.decouple(mixed, masks, 1.0, renormalize="clamp")
    normalized = decoupling.decouple(mixed, masks, lambdas, renormalize="normalize")
    for n in range(3):
        weight = lambdas[n].item()
        torch.testing.assert_close(blended[n], weight * labeled[n] + (1 - weight) * others[n])
        torch.testing.assert_close(soft[n], mixed[n] - weight * masks[n])
        torch.testing.assert_close(hard[n], mixed[n] - masks[n])
        for y in range(2):
            for x in range(2):
                left = [max(value, 0.0) for value in soft[n, :, y, x].tolist()]
                assert normalized[n, :, y, x].tolist() == pytest.approx([value / sum(left) for value in left])
                assert clamped[n, :, y, x].tolist() == [max(value, 0.0) for value in hard[n, :, y, x].tolist()]
    assert torch.equal(decoupling.decouple(mixed, masks, 0.0), mixed)


def test_image_level_labels_are_the_classes_of_the_mask() -> None:
    labels = torch.tensor([[[0, 2], [255, 2]], [[255, 255], [255, 255]], [[65535, 1], [1, 3]]])
    assert decoupling.image_level_labels(labels, 4).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]]
