"""Fitting a segmentor's config to a dataset and to the choice of its initial weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sslseg.config.files import unscoped
from sslseg.errors import UserError
from sslseg.registry import MODELS

RANDOM = "random"  # the source of weights that come from nowhere


def heads(model: Any) -> Iterator[Any]:
    """Yield the configs of every decode and auxiliary head of a segmentor config."""
    for key in ("decode_head", "auxiliary_head"):
        head = model.get(key)
        if head is not None:
            yield from head if isinstance(head, (list, tuple)) else [head]


def fit_model(model: Any, *, num_classes: int, ignore_index: int) -> Any:
    """Set the class count and the ignore index of every head; binary one-channel heads become softmax heads.

    Losses that can average over labeled pixels do: their ``avg_non_ignore`` becomes True.
    """
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
            if _has_setting(loss, "avg_non_ignore"):
                loss["avg_non_ignore"] = True
            weights = loss.get("class_weight")
            if isinstance(weights, (list, tuple)) and len(weights) != num_classes:
                raise UserError(
                    f"model.{head.get('type')}.loss_decode.class_weight has {len(weights)} weights, the dataset"
                    f" {num_classes} classes; fix the config or remove it"
                )
    preprocessor = model.setdefault("data_preprocessor", dict(type="SegDataPreProcessor"))
    preprocessor["seg_pad_val"] = ignore_index
    # Views are padded to the crop by the loader; a size here, tuned to another crop, would only get in the way.
    preprocessor.pop("size", None)
    preprocessor.setdefault("size_divisor", 1)
    model["train_cfg"] = ConfigDict(model.get("train_cfg") or {})
    model["test_cfg"] = ConfigDict(mode="whole")
    return model


def _has_setting(loss: Any, name: str) -> bool:
    """Return whether the class that the config of a loss names has this setting."""
    found = MODELS.get(loss["type"]) if isinstance(loss.get("type"), str) else loss.get("type")
    return found is not None and name in inspect.signature(found).parameters


def weights_source(model: Any, pretrained: str) -> str:
    """Return where a segmentor's encoder gets its weights: what its config names, the name of a file, or ``random``.

    Folders of files are left out, so that equal runs have equal records.
    """
    if pretrained not in ("auto", "none"):
        return Path(pretrained).name
    named = [name for part in (_named(model), *map(_named, _parts(model["backbone"]))) for name in part]
    names = (name.partition("#")[0] if "://" in name else Path(name).name for name in named)
    return ", ".join(dict.fromkeys(names)) or RANDOM


def without_pretrained(config: Any) -> Any:
    """Return a copy of a segmentor config that names no pretrained weights, such as of a model whose checkpoint brings its own."""
    config = type(config)(config.to_dict())
    for part in list(_parts(config)):
        part.pop("pretrained", None)
        found = _initializers(part)
        kept = [one for one in found if not _loads(one)]
        if len(kept) < len(found):
            part.pop("init_cfg")
            if kept:
                part["init_cfg"] = kept
    return config


def _parts(config: Any) -> Iterator[Any]:
    """Yield every dict in a config, itself first."""
    if isinstance(config, dict):
        yield config
    for value in config.values() if isinstance(config, dict) else config:
        if isinstance(value, (dict, list, tuple)):
            yield from _parts(value)


def _named(part: Any) -> list[str]:
    """Return the checkpoints that one dict of a config names."""
    found = [part.get("pretrained"), *(one.get("checkpoint") for one in _initializers(part) if _loads(one))]
    return [name for name in found if isinstance(name, str)]


def _initializers(part: Any) -> list[Any]:
    found = part.get("init_cfg") or []
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _loads(initializer: Any) -> bool:
    return isinstance(initializer, dict) and initializer.get("type") == "Pretrained"


def apply_pretrained(model: Any, pretrained: str) -> Any:
    """Return a segmentor config for ``--pretrained``: ``none`` and a file leave out what it names, ``auto`` keeps it.

    The file is loaded once the model has been built (``sslseg.engine.weights``).
    """
    if pretrained == "auto":
        return model
    if pretrained != "none" and not Path(pretrained).is_file():
        raise UserError(f"--pretrained {pretrained!r} is not a file; give none, auto or the path of a checkpoint")
    return without_pretrained(model)
