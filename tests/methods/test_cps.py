"""CPS: L against a slow reference, whose labels teach whom, mixing with other images, passes, both predictors, recipes."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from torch import Tensor

from sslseg.config.build import TrainOptions, build_config
from sslseg.config.lengths import batch_counts
from sslseg.engine.build import optim_wrapper, transforms_of
from sslseg.engine.weights import initialize
from sslseg.errors import UserError
from sslseg.inference import Predictor, Protocol
from sslseg.registry import MODELS
from sslseg.splits.split import Split
from tests.methods.conftest import CLASSES, IGNORE, SIZE, build, labeled_view, moved, other_views, segmentor
from tests.methods.test_padding import padded, predict_noise_on_padding

MIXES = ("none", "cutmix")


def batch() -> dict[str, dict[str, Any]]:
    weak, _ = other_views(3)
    weak["valid"][1, :, 30:] = False
    return dict(labeled_weak=labeled_view(), unlabeled_weak=weak)


def full(model: Any, images: Tensor) -> Tensor:
    return F.interpolate(model.decode_head(model.extract_feat(images)), SIZE, mode="bilinear", align_corners=False)


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Where other images show: not drawn, but given."""
    mask = torch.zeros(3, 1, *SIZE, dtype=torch.bool)
    mask[0, 0, 5:20, 7:30] = mask[1, 0, 2:30, 25:44] = mask[2, 0, 15:40, 20:48] = True
    monkeypatch.setattr("sslseg.methods.cps.overlaid_rectangles", lambda *a, **k: mask)
    return mask[:, 0]


def slow_terms(method: Any, given: dict[str, dict[str, Any]], inside: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return L_s of each network, and the cross entropies of L_cps, pixel by pixel in float64."""
    labeled, unlabeled = given.values()
    images, valid = unlabeled["inputs"], unlabeled["valid"]
    networks = (method.student, method.right)
    mixing = method.mix == "cutmix"
    if mixing:
        whole = [full(model, images).detach() for model in networks]
        shown, valid, classes = images.clone(), valid.clone(), [logits.argmax(1) for logits in whole]
        mixed_classes = [maps.clone() for maps in classes]
        for n in range(3):
            for y, x in inside[n].nonzero().tolist():
                other = (n + 1) % 3
                shown[n, :, y, x] = images[other, :, y, x]
                valid[n, y, x] = unlabeled["valid"][other, y, x]
                for maps, own in zip(mixed_classes, classes, strict=True):
                    maps[n, y, x] = own[other, y, x]
    else:
        shown = images
    logits = [full(model, torch.cat((labeled["inputs"], shown))).double() for model in networks]
    supervised = [F.cross_entropy(one[:2], labeled["labels"], ignore_index=IGNORE) for one in logits]
    if mixing:
        predictions, labels = [one[2:] for one in logits], mixed_classes
    else:
        predictions, labels = logits, [one.argmax(1) for one in logits]
        valid = torch.cat((labeled["labels"] != IGNORE, valid))
    terms = []
    for own, taught in ((0, labels[1]), (1, labels[0])):
        values = [-predictions[own][n, :, y, x].log_softmax(0)[taught[n, y, x]] for n, y, x in valid.nonzero().tolist()]
        terms.append(torch.stack(values).sum() / len(values))
    return supervised, terms


@pytest.mark.parametrize("mix", MIXES)
def test_the_loss_and_its_gradients_equal_the_slow_ones(mix: str, inside: Tensor) -> None:
    """The labels of the slow one are constants: so no gradient passes through them, and each network learns the other's."""
    method = build("CPS", mix=mix, weight=2.0)
    given = batch()
    losses = method.loss(given)
    supervised, terms = slow_terms(method, given, inside)
    for side, expected in zip(("left", "right"), supervised, strict=True):
        torch.testing.assert_close(losses[f"{side}.decode.loss_ce"].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["loss_cross"].double(), 2.0 * (terms[0] + terms[1]), rtol=1e-5, atol=1e-6)
    assert {name for name in losses if "loss" in name} == {
        "left.decode.loss_ce",
        "right.decode.loss_ce",
        "loss_cross",
    }
    both = [list(network.parameters()) for network in (method.student, method.right)]
    found = torch.autograd.grad(losses["loss_cross"], both[0] + both[1])
    slow = [torch.autograd.grad(2.0 * term, own) for term, own in zip(terms, both, strict=True)]
    for value, expected in zip(found, [*slow[0], *slow[1]], strict=True):
        torch.testing.assert_close(value, expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("pupil", ["student", "right"])
def test_a_network_that_sees_one_class_teaches_the_other_that_class(mix: str, pupil: str) -> None:
    method = build("CPS", mix=mix, weight=1.0)
    teacher = method.right if pupil == "student" else method.student
    only = torch.zeros(1, CLASSES, 1, 1)
    only[:, 2] = 30.0
    teacher.decode_head.register_forward_hook(lambda module, inputs, logits: 0.0 * logits + only)
    given = batch()
    seen: list[Tensor] = []
    getattr(method, pupil).decode_head.register_forward_hook(lambda module, inputs, logits: seen.append(logits))
    torch.manual_seed(3)
    loss = method.loss(given)["loss_cross"]
    (gradient,) = torch.autograd.grad(loss, seen[-1])
    sums = gradient[2 if mix == "cutmix" else 0 :].sum(dim=(0, 2, 3))
    assert sums[2] < 0, "the pupil's score of the taught class grows, ..."
    assert all(sums[c] > 0 for c in (0, 1, 3)), "... the others fall"
    for other in seen[:-1]:
        assert other.grad_fn is None, "labels are predicted without gradients"


@pytest.mark.parametrize("mix", MIXES)
def test_all_of_both_networks_moves(mix: str) -> None:
    method = build("CPS", mix=mix)
    assert {name for name, _ in method.named_parameters()} <= moved(method, batch(), iterations=2)
    assert method.eval_model is method.student


def test_partners_are_other_images_and_labels_move_along() -> None:
    method = build("CPS", mix="cutmix")
    weak, _ = other_views(4)
    values = torch.arange(4.0)[:, None, None, None]
    weak["inputs"] = values.expand(4, 3, *SIZE).clone()
    seen: list[Tensor] = []
    for network in (method.student, method.right):
        network.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][-4:]))
    torch.manual_seed(0)
    method.loss(dict(labeled_weak=labeled_view(), unlabeled_weak=weak))
    first, second, left, right = seen
    assert torch.equal(first, weak["inputs"])
    assert torch.equal(second, weak["inputs"])
    assert torch.equal(left, right), "both networks learn the same mixture"
    for n, image in enumerate(left):
        assert set(image.unique().tolist()) == {float(n), float((n + 1) % 4)}
        assert (image == image[0]).all(), "channels move together"
    assert len({tuple((image != n)[0].flatten().tolist()) for n, image in enumerate(left)}) == 4, "one mask each"


def test_one_image_has_no_partner() -> None:
    given = dict(labeled_weak=labeled_view(), unlabeled_weak=other_views(1)[0])
    with pytest.raises(UserError, match=r"method.mix=none"):
        build("CPS", mix="cutmix").loss(given)
    assert build("CPS").loss(given)["loss_cross"] > 0


@pytest.mark.parametrize("mix", MIXES)
def test_losses_do_not_depend_on_predictions_of_padding(mix: str) -> None:
    results = []
    weak, labeled = padded(other_views()[0]), padded(labeled_view())
    for seed in (1, 2):
        method = build("CPS", mix=mix)
        for network, own in ((method.student, seed), (method.right, 10 + seed)):
            predict_noise_on_padding(network, own)
        torch.manual_seed(0)
        results.append(method.loss(dict(labeled_weak=labeled, unlabeled_weak=weak)))
    assert all(value > 0 for value in results[0].values())
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_without_valid_pixels_the_networks_learn_labels_alone() -> None:
    given = batch()
    given["unlabeled_weak"]["valid"][:] = False
    method = build("CPS", mix="cutmix")
    losses = method.loss(given)
    assert losses["loss_cross"] == 0
    gradients = torch.autograd.grad(losses["loss_cross"], list(method.parameters()), allow_unused=True)
    assert not any(value is not None and (value.any() or value.isnan().any()) for value in gradients)


def test_the_weight_ramps_up() -> None:
    given, values = batch(), []
    for rampup, iteration in ((0.0, 0), (0.5, 0), (0.5, 25), (0.5, 50)):
        method = build("CPS", rampup=rampup, weight=3.0)
        method.begin_iteration(iteration)
        values.append(method.loss(given)["loss_cross"].item())
    shares = [value / values[0] for value in values]
    assert shares == pytest.approx([1.0, math.exp(-5.0), math.exp(-5.0 / 4), 1.0], rel=1e-4)


def test_agreement_and_the_history_count_both_networks_classes() -> None:
    method = build("CPS")
    constant = [torch.zeros(1, CLASSES, 1, 1) for _ in range(2)]
    for network, scores, c in zip((method.student, method.right), constant, (1, 3), strict=True):
        scores[:, c] = 9.0
        network.decode_head.register_forward_hook(lambda module, inputs, logits, scores=scores: 0 * logits + scores)
    assert method.loss(batch())["agreement"] == 0.0
    taken = method.log_values()["pseudo_labels"]
    assert taken["predicted"] == [0.0, 0.5, 0.0, 0.5]
    assert taken["accepted"] == [None, 1.0, None, 1.0]
    constant[1].copy_(constant[0])
    assert method.loss(batch())["agreement"] == 1.0


@pytest.mark.parametrize("mix", MIXES)
def test_bare_passes_are_those_of_the_loss(mix: str) -> None:
    """One pass of all images with gradients; with CutMix one of the unlabeled images without, in training mode, before it."""
    method, given = build("CPS", mix=mix), batch()
    counts: Counter[tuple[Any, ...]] = Counter()
    for side in ("student", "right"):
        for part in ("backbone", "decode_head"):
            getattr(getattr(method, side), part).register_forward_hook(
                lambda module, inputs, outputs, key=(side, part): counts.update(
                    [(*key, len(outputs[0] if isinstance(outputs, tuple) else outputs), torch.is_grad_enabled())]
                )
            )
    seen, batches = [], []
    for call in (method.loss, method.bare_passes):
        counts.clear()
        before = method.right.backbone.layer1[0].norm1.num_batches_tracked.clone()
        call(given)
        seen.append(dict(counts))
        batches.append(int(method.right.backbone.layer1[0].norm1.num_batches_tracked - before))
    sizes = {(5, True), (3, False)} if mix == "cutmix" else {(5, True)}
    assert (
        seen[0]
        == seen[1]
        == {
            (side, part, *size): 1
            for side in ("student", "right")
            for part in ("backbone", "decode_head")
            for size in sizes
        }
    )
    assert batches == [len(sizes)] * 2, "each pass moves the running statistics"


def test_the_second_network_may_be_unlike() -> None:
    config = segmentor()
    config.backbone.depth = 34
    method = build("CPS", mix="cutmix", right=config)
    assert len(list(method.right.parameters())) > len(list(method.student.parameters()))
    assert {name for name, _ in method.named_parameters()} <= moved(method, batch())


def test_both_encoders_get_imagenet_weights_and_heads_differ(toy_split: Split) -> None:
    config = build_config(toy_split, TrainOptions(method="cps"))
    states = []
    for _ in range(2):
        torch.manual_seed(4)
        method = MODELS.build(dict(config.method, segmentor=config.model))
        initialize(method, "auto", dict(student="weights", right="weights"))
        states.append(method.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items()), "the seed says all"
    encoder, head = (
        {
            name: torch.equal(value, states[0]["right." + name.removeprefix("student.")])
            for name, value in states[0].items()
            if name.startswith(f"student.{part}.") and value.dim() > 1
        }
        for part in ("backbone", "decode_head")
    )
    assert encoder
    assert all(encoder.values())
    assert head
    assert not any(head.values())
    source = method.messages[0]
    assert source.count("of the backbone's") == 2, source


def test_the_average_of_both_networks_can_label() -> None:
    method = build("CPS").eval()
    samples = [dict(inputs=torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)) for _ in range(2)]
    sides = [Predictor(model, Protocol())(samples) for model in (method.student, method.right)]
    for name, expected in (
        ("left", [one.probabilities for one in sides[0]]),
        ("average", [(one.probabilities + other.probabilities) / 2 for one, other in zip(*sides, strict=True)]),
    ):
        for made, probabilities in zip(method.predictors[name].of(method, Protocol())(samples), expected, strict=True):
            torch.testing.assert_close(made.probabilities, probabilities)
            assert torch.equal(made.mask, probabilities.argmax(0))
    assert next(iter(method.predictors)) == "left"


# Config: mix, weight, crop, rate, epochs of the split 1/8, window and stride of the evaluation.
PUBLISHED = {
    "cps/voc": ("none", 1.5, 512, 0.01, 34, "slide 512x512 stride 342x342"),
    "cps/voc_cutmix": ("cutmix", 1.0, 512, 0.01, 34, "slide 512x512 stride 342x342"),
    "cps/cityscapes": ("none", 6.0, 800, 0.02, 137, "slide 800x800 stride 534x534"),
    "cps/cityscapes_cutmix": ("cutmix", 5.0, 800, 0.02, 137, "slide 800x800 stride 534x534"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_those_of_the_official_implementation(toy_split: Split, name: str) -> None:
    mix, weight, crop, _, epochs, protocol = PUBLISHED[name]
    config = build_config(toy_split, TrainOptions(config=name))
    assert config.method == dict(type="CPS", right=None, mix=mix, weight=weight, rampup=0.0)
    schedule, data, model = config.schedule, config.data, config.model
    assert schedule.iterations == epochs * math.ceil(len(toy_split.unlabeled) / 8)
    assert (schedule.power, schedule.warmup) == (0.9, 0.0)
    assert batch_counts(config, ("labeled", "unlabeled")) == dict(labeled=8, unlabeled=8)
    assert (tuple(data.crop), tuple(data.scale), data.flip, data.cat_max_ratio) == ((crop, crop), (0.5, 2.0), 0.5, 1.0)
    assert data.get("rotation", 0.0) == 0
    assert transforms_of("weak", config) == []
    assert str(Protocol(**config.evaluation)) == protocol
    assert model.pretrained == "open-mmlab://resnet101_v1c"
    assert (model.backbone.type, model.backbone.depth, model.backbone.norm_eval) == ("ResNetV1c", 101, False)
    assert (model.backbone.norm_cfg.type, model.backbone.norm_cfg.requires_grad) == ("SyncBN", True)
    decoder = model.decode_head
    assert (tuple(decoder.dilations), decoder.channels, decoder.c1_channels) == ((1, 6, 12, 18), 256, 48)
    assert (decoder.dropout_ratio, decoder.align_corners, model.auxiliary_head) == (0.0, True, None)
    if "cityscapes" in name:
        sampler = decoder.sampler
        assert (sampler.type, sampler.thresh, sampler.min_kept) == ("OHEMPixelSampler", 0.7, 50_000)
    else:
        assert "sampler" not in decoder


@pytest.mark.parametrize("name", ["cps/voc", "cps/cityscapes_cutmix"])
def test_one_rate_for_all_and_no_decay_of_batch_norm_and_biases(toy_split: Split, name: str) -> None:
    config = build_config(toy_split, TrainOptions(config=name))
    model = MODELS.build(dict(config.method, segmentor=segmentor()))
    optimizer = build_optim_wrapper(model, optim_wrapper(config)).optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    names = {id(value): key for key, value in model.named_parameters()}
    found = {names[id(value)]: group for group in optimizer.param_groups for value in group["params"]}
    assert set(found) == set(names.values())
    for key, value in model.named_parameters():
        group = found[key]
        decay = 1e-4 if value.dim() > 1 else 0.0
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (PUBLISHED[name][3], 0.9, decay), key


def test_the_last_stage_has_dilations_2_4_and_8(toy_split: Split) -> None:
    options = {"model.pretrained": "open-mmlab://resnet50_v1c", "model.backbone.depth": 50}  # as the docs say
    config = build_config(toy_split, TrainOptions(config="cps/voc", assignments=options, pretrained="none"))
    config.model.backbone.update(base_channels=8, stem_channels=8, norm_cfg=dict(type="BN"))
    backbone = MODELS.build(config.model.backbone)
    assert [len(getattr(backbone, f"layer{stage}")) for stage in (1, 2, 3, 4)] == [3, 4, 6, 3]
    assert [level.shape[-1] for level in backbone(torch.zeros(1, 3, 96, 96))] == [24, 12, 6, 6]
    assert [block.conv2.dilation[0] for block in backbone.layer4] == [2, 4, 8]
    assert {block.conv2.dilation[0] for stage in (1, 2, 3) for block in getattr(backbone, f"layer{stage}")} == {1}


@pytest.mark.parametrize("dataset", ["voc", "cityscapes"])
def test_the_baseline_has_the_same_recipe_and_as_many_iterations(toy_split: Split, dataset: str) -> None:
    config, other = (
        build_config(toy_split, TrainOptions(config=one)) for one in (f"cps/{dataset}", f"supervised/{dataset}_cps")
    )
    assert other.method == dict(type="Supervised")
    for key in ("model", "schedule", "optimizer", "paramwise", "data", "views", "evaluation"):
        assert other.get(key) == config.get(key), key
