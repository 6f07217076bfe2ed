"""Initial weights: the config's own pretrained references, or a file of the user's."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from sslseg.compat import load_any_checkpoint
from sslseg.errors import UserError

WRAPPERS = ("module.", "student.", "model.")


def initialize(model: Any, pretrained: str) -> None:
    """Initialize ``model`` (with what its config names as pretrained), then load the file ``pretrained``, if it is one."""
    try:
        model.init_weights()
    except (URLError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"pretrained weights named in the model config cannot be loaded ({reason}); "
            "use --pretrained none, or --pretrained PATH with a file of your own"
        ) from error
    if pretrained not in ("auto", "none"):
        load_file(model.student, Path(pretrained))
    model.initialize_ema()


def load_file(segmentor: nn.Module, path: Path) -> int:
    """Load a backbone's or a whole segmentor's weights where names and shapes agree; return how many tensors did.

    Raises:
        UserError: the file is not a checkpoint, or not one tensor fits.
    """
    try:
        checkpoint = load_any_checkpoint(path)
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
    weights = checkpoint.get("state_dict", checkpoint)
    weights = {_strip(name): value for name, value in weights.items() if torch.is_tensor(value)}
    whole = any(name.startswith("backbone.") for name in weights)
    target = segmentor if whole else segmentor.get_submodule("backbone")
    own = target.state_dict()
    fitting: dict[str, Tensor] = {
        name: value for name, value in weights.items() if name in own and own[name].shape == value.shape
    }
    if not fitting:
        raise UserError(f"--pretrained {path} has no tensor that fits this model; give the weights of its architecture")
    target.load_state_dict(fitting, strict=False)
    return len(fitting)


def _strip(name: str) -> str:
    for prefix in WRAPPERS:
        name = name.removeprefix(prefix)
    return name
