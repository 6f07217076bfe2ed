"""Initial weights: those that the model config names, or a file of the user's."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from torch import Tensor, nn

from sslseg.compat import load_any_checkpoint
from sslseg.config.fit import RANDOM
from sslseg.errors import UserError

WRAPPERS = ("module.", "student.", "model.")
BACKBONE = "backbone."
LEAST = 0.5  # of the backbone's tensors that a file must hold


def initialize(model: Any, pretrained: str, sources: Mapping[str, str]) -> None:
    """Initialize ``model``; its messages say where the weights of each encoder come from, and how many were loaded.

    With a file, the first segmentor gets all of it that fits. Further ones get the backbone's part where that fits, and keep
    their own random heads.

    Args:
        sources: where the weights of the student and of further segmentors come from (``sslseg.config.fit.weights_source``).

    Raises:
        UserError: weights cannot be read, or fit less than half of a backbone.
    """
    parts = {name: getattr(model, name, None) for name in ("student", *model.segmentors)}
    segmentors = {name: part for name, part in parts.items() if part is not None}
    with contextlib.ExitStack() as stack:
        loaded = {name: stack.enter_context(_count_loaded(part.backbone)) for name, part in segmentors.items()}
        try:
            model.init_weights()
        except (URLError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"pretrained weights named in the model config cannot be loaded ({reason}); "
                "use --pretrained none, or --pretrained PATH with a file of your own"
            ) from error
    if pretrained in ("auto", "none"):
        found = {name: _named_weights(part, sources[name], loaded[name]) for name, part in segmentors.items()}
    else:
        weights = read_weights(Path(pretrained))
        found = dict(student=f"{pretrained}, {load_weights(model.student, weights, name=pretrained)}")
        for name in [name for name in segmentors if name != "student"]:
            found[name] = str(load_weights(segmentors[name], weights, name=pretrained, further=True) or RANDOM)
    first, *others = (text if name == "student" else f"{name}: {text}" for name, text in found.items())
    model.messages.insert(0, "; ".join((f"encoder weights: {first}", *others)))
    model.initialize_ema()


class Loaded(NamedTuple):
    """How many tensors of a module were loaded."""

    number: int
    total: int
    module: str

    def __str__(self) -> str:
        return f"{self.number} of the {self.module}'s {self.total} tensors"


def _named_weights(segmentor: Any, source: str, loaded: list[int]) -> str:
    """Describe the weights that a model config names, and refuse those of another architecture."""
    # A backbone that wraps another one loads within itself, uncounted.
    if source == RANDOM or not loaded:
        return source
    count = Loaded(max(loaded), len(segmentor.backbone.state_dict()), "backbone")
    if count.number < LEAST * count.total:
        raise UserError(f"{source} of the model config fits {count}; use --pretrained none, or name its architecture")
    return f"{source}, {count}"


@contextlib.contextmanager
def _count_loaded(module: nn.Module) -> Iterator[list[int]]:
    """Within, append to a list how many tensors of ``module`` each loaded state dict holds."""
    counts: list[int] = []

    def count(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        own = {prefix + name: value.shape for name, value in module.state_dict().items()}
        counts.append(sum(name in state_dict and state_dict[name].shape == shape for name, shape in own.items()))

    handle = module.register_load_state_dict_pre_hook(count)
    try:
        yield counts
    finally:
        handle.remove()


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
    segmentor: nn.Module, weights: dict[str, Tensor], *, name: str, further: bool = False
) -> Loaded | None:
    """Load a backbone's or a whole segmentor's weights where names and shapes agree.

    Args:
        name: what the user calls the file.
        further: load only the backbone, and nothing (returning None) where less than half of it fits.

    Raises:
        UserError: fewer than half of the backbone's tensors fit.
    """
    backbone = segmentor.get_submodule("backbone")
    own_names = getattr(backbone, "rename_weights", None)
    if own_names is not None:
        weights = own_names(weights)
    whole = any(key.startswith(BACKBONE) for key in weights)
    if whole and further:
        weights = {key.removeprefix(BACKBONE): value for key, value in weights.items() if key.startswith(BACKBONE)}
    target = segmentor if whole and not further else backbone
    own = target.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    encoder = len(backbone.state_dict())
    found = sum(key.startswith(BACKBONE) for key in fitting) if target is segmentor else len(fitting)
    if found < LEAST * encoder:
        if further:
            return None
        raise UserError(
            f"--pretrained {name} fits {found} of the backbone's {encoder} tensors; give the weights of its architecture"
        )
    target.load_state_dict(fitting, strict=False)
    return Loaded(len(fitting), len(own), "model" if target is segmentor else "backbone")


def _strip(name: str) -> str:
    for prefix in WRAPPERS:
        name = name.removeprefix(prefix)
    return name
