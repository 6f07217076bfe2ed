"""Initial weights: those that the model config names, or a file of the user's."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from sslseg.compat import load_any_checkpoint
from sslseg.errors import UserError

WRAPPERS = ("module.", "student.", "model.")
RANDOM = "random"
BACKBONE = "backbone."
LEAST = 0.5  # of the backbone's tensors that a file must hold


def initialize(model: Any, pretrained: str) -> str:
    """Initialize ``model`` and return where its encoder's weights come from.

    With a file, the first segmentor gets all of it that fits; further ones get the backbone's part, and
    keep their own random heads.

    Raises:
        UserError: weights cannot be read, or a file does not fit.
    """
    try:
        model.init_weights()
    except (URLError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"pretrained weights named in the model config cannot be loaded ({reason}); "
            "use --pretrained none, or --pretrained PATH with a file of your own"
        ) from error
    if pretrained in ("auto", "none"):
        source = ", ".join(dict.fromkeys(named_weights(model.student))) or RANDOM
        message = f"encoder weights: {source}"
    else:
        source, weights = Path(pretrained).name, read_weights(Path(pretrained))
        number, total = load_weights(model.student, weights, name=pretrained)
        message = f"encoder weights: {pretrained}, {number} of the model's {total} tensors"
        for name in model.segmentors:
            number, total = load_weights(getattr(model, name), weights, name=pretrained, backbone_only=True)
            message += f"; {name}: {number} of the backbone's {total}"
    model.messages.insert(0, message)
    model.initialize_ema()
    return source


def named_weights(segmentor: Any) -> Iterator[str]:
    """Yield the checkpoints that a segmentor's config names for its backbone; without the folders of a file."""
    for part in (segmentor, segmentor.backbone):
        for named in (getattr(part, "pretrained", None), (getattr(part, "init_cfg", None) or {})):
            if isinstance(named, dict):
                named = named.get("checkpoint") if named.get("type") == "Pretrained" else None
            if isinstance(named, str):
                yield named.partition("#")[0] if "://" in named else Path(named).name


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint of any program, without the prefixes of wrappers."""
    try:
        checkpoint = load_any_checkpoint(path)
        weights = checkpoint.get("state_dict", checkpoint)
        return {_strip(name): value for name, value in weights.items() if torch.is_tensor(value)}
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        pickle.UnpicklingError,
    ) as error:
        raise UserError(
            f"--pretrained {path} is not a readable checkpoint ({type(error).__name__}); give a .pth file"
        ) from error


def load_weights(
    segmentor: nn.Module, weights: dict[str, Tensor], *, name: str, backbone_only: bool = False
) -> tuple[int, int]:
    """Load a backbone's or a whole segmentor's weights where names and shapes agree.

    Args:
        name: what the user calls the file.

    Returns:
        How many tensors were loaded, and how many the target has.

    Raises:
        UserError: fewer than half of the backbone's tensors fit.
    """
    backbone = segmentor.get_submodule("backbone")
    own_names = getattr(backbone, "rename_weights", None)
    if own_names is not None:
        weights = own_names(weights)
    whole = any(key.startswith(BACKBONE) for key in weights)
    if whole and backbone_only:
        weights = {key.removeprefix(BACKBONE): value for key, value in weights.items() if key.startswith(BACKBONE)}
    target = segmentor if whole and not backbone_only else backbone
    own = target.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    encoder = len(backbone.state_dict())
    found = sum(key.startswith(BACKBONE) for key in fitting) if target is segmentor else len(fitting)
    if found < LEAST * encoder:
        raise UserError(
            f"--pretrained {name} fits {found} of the backbone's {encoder} tensors; give the weights of its architecture"
        )
    target.load_state_dict(fitting, strict=False)
    return len(fitting), len(own)


def _strip(name: str) -> str:
    for prefix in WRAPPERS:
        name = name.removeprefix(prefix)
    return name
