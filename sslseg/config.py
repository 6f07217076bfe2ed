"""Configs: where they are, how one is loaded, and how a segmentor's config is fitted to a dataset."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sslseg.errors import UserError
from sslseg.registry import import_mmseg


def config_root() -> Path:
    """Return the folder of the shipped configs: inside an installed wheel, else beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "_base_").is_dir():
            return candidate
    raise FileNotFoundError(f"sslseg's configs are missing beside {package}; reinstall sslseg")


def model_names() -> list[str]:
    """Return the names that ``--model`` knows."""
    return sorted(path.stem for path in (config_root() / "_base_" / "models").glob("*.py"))


def config_names() -> list[str]:
    """Return the names that ``--config`` knows, such as ``supervised/default``."""
    root = config_root()
    paths = (path.relative_to(root) for path in root.glob("[!_]*/*.py"))
    return sorted(path.with_suffix("").as_posix() for path in paths)


def load(path: Path) -> Any:
    """Load an mmengine config, also one whose ``_base_`` is ``mmseg::...``; raise UserError if it is broken."""
    from mmengine.config import Config

    import_mmseg()
    try:
        return Config.fromfile(str(path))
    except (
        OSError,
        SyntaxError,
        KeyError,
        TypeError,
        NameError,
        ValueError,
        ImportError,
        AttributeError,
    ) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"config {path} cannot be loaded: {type(error).__name__}: {reason}; mend the file") from error


def load_named(name: str) -> Any:
    """Load a shipped config by name or a user's own by path."""
    path = config_root() / f"{name}.py"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        known = ", ".join(config_names())
        raise UserError(f"config {name!r} is neither a shipped config ({known}) nor a file; check --config")
    return load(path)


def load_model(name: str) -> Any:
    """Return the ``model`` part of a preset (``--model NAME``) or of a user's own mmseg config (``--model PATH``)."""
    preset = config_root() / "_base_" / "models" / f"{name}.py"
    path = preset if preset.is_file() else Path(name)
    if path.suffix != ".py" or not path.is_file():
        known = ", ".join(model_names())
        raise UserError(
            f"model {name!r} is neither a preset nor a config file; use --model with one of: {known}; or a path"
        )
    config = load(path)
    if "model" not in config:
        raise UserError(f"config {path} has no `model`; give an mmseg segmentor config")
    return unscoped(copy.deepcopy(config.model))


def unscoped(config: Any) -> Any:
    """Remove the scope that mmengine notes in what ``mmseg::`` configs brought, or our own networks would not be found there."""
    if isinstance(config, dict):
        config.pop("_scope_", None)
        for value in config.values():
            unscoped(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            unscoped(value)
    return config


def heads(model: Any) -> Iterator[Any]:
    """Yield the configs of every decode and auxiliary head of a segmentor config."""
    for key in ("decode_head", "auxiliary_head"):
        head = model.get(key)
        if head is not None:
            yield from head if isinstance(head, (list, tuple)) else [head]


def fit_model(model: Any, *, num_classes: int, ignore_index: int) -> Any:
    """Set the class count and the ignore index of every head; binary one-channel heads become softmax heads."""
    from mmengine.config import ConfigDict

    model = unscoped(ConfigDict(copy.deepcopy(model)))
    if model.get("decode_head") is None or model.get("backbone") is None:
        raise UserError(f"model {model.get('type')!r} has no backbone and decode_head; use an mmseg EncoderDecoder")
    for head in heads(model):
        head.update(num_classes=num_classes, ignore_index=ignore_index)
        binary = head.pop("out_channels", None) == 1
        head.pop("threshold", None)
        losses = head.get("loss_decode", dict(type="CrossEntropyLoss"))
        for loss in losses if isinstance(losses, (list, tuple)) else [losses]:
            if binary and loss.get("use_sigmoid"):
                loss["use_sigmoid"] = False
            weights = loss.get("class_weight")
            if isinstance(weights, (list, tuple)) and len(weights) != num_classes:
                raise UserError(
                    f"model.{head.get('type')}.loss_decode.class_weight has {len(weights)} weights, the dataset"
                    f" {num_classes} classes; mend the config or remove it"
                )
    preprocessor = model.setdefault("data_preprocessor", dict(type="SegDataPreProcessor"))
    preprocessor["seg_pad_val"] = ignore_index
    # Views are padded to the crop by the loader; a size here, tuned to another crop, would only get in the way.
    preprocessor.pop("size", None)
    preprocessor.setdefault("size_divisor", 1)
    model["train_cfg"] = ConfigDict(model.get("train_cfg") or {})
    model["test_cfg"] = ConfigDict(mode="whole")
    return model


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split ``a.b=value`` of ``--set``; the value is a Python literal where it is one, else a string."""
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text!r} is not of the form a.b=value")
    try:
        value = ast.literal_eval(raw)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(raw.lower(), raw)
    return key.strip(), value


def apply_assignments(config: Any, assignments: dict[str, Any]) -> None:
    """Set dotted keys of ``config`` in place; a parent that does not exist is an error, so that typos are seen."""
    for dotted, value in assignments.items():
        *parents, last = dotted.split(".")
        node = config
        for depth, key in enumerate(parents):
            if isinstance(node, list):
                child = node[int(key)] if key.isdigit() and int(key) < len(node) else None
                known = f"0..{len(node) - 1}"
            else:
                child, known = node.get(key), ", ".join(node.keys())
            if not isinstance(child, (dict, list)):
                where = ".".join(parents[: depth + 1])
                raise UserError(f"--set {dotted}: there is no {where!r} in the config; known there: {known}")
            node = child
        if isinstance(node, list):
            if not last.isdigit() or int(last) >= len(node):
                raise UserError(f"--set {dotted}: {last!r} is no index of this list of {len(node)}")
            node[int(last)] = value
        else:
            node[last] = value


def flattened(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested config as dotted keys; lists and tuples count as the same."""
    if isinstance(config, dict):
        items = [(str(key), value) for key, value in config.items()]
    elif isinstance(config, (list, tuple)):
        items = [(str(index), value) for index, value in enumerate(config)]
    else:
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flattened(value, f"{prefix}.{key}" if prefix else key)
    return flat
