"""Everything that touches private names or globals of mmengine, mmcv, mmseg and torch: the whole surface of an upgrade.

Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

MMSEG_DISTRIBUTION = "onedl-mmsegmentation"
SINGLE_VALUE = "more than 1 value per channel"  # in the error of torch's BatchNorm about a batch of one pixel


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Silence the imports of mmseg, mmcv and mmengine.

    The continuation prints "Could not import OneDL" on stdout, which belongs to a command's one line, and warns about
    optional operators that no segmentor here uses.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def resolve_bases(find: Callable[[str, str], Path | None]) -> None:
    """Let ``_base_ = 'NAME::path.py'`` in configs reach packages that mmengine does not know.

    Args:
        find: called with NAME and the path; returns the file, or None to leave the name to mmengine.
    """
    from mmengine.config import Config
    from mmengine.config import utils as config_utils

    # `mmseg::` looks for the distribution that upstream published under another name.
    config_utils.MODULE2PACKAGE["mmseg"] = MMSEG_DISTRIBUTION
    original = Config._get_cfg_path

    def get_path(path: str, filename: str) -> tuple[str, str | None]:
        name, external, rest = path.partition("::")
        found = find(name, rest) if external else None
        return original(path, filename) if found is None else (str(found), None)

    Config._get_cfg_path = staticmethod(get_path)


def use_cpu() -> None:
    """Make mmengine's ``get_device()`` return the CPU: it picks the device when it is imported, and keeps it under this name."""
    from mmengine.device import utils

    utils.DEVICE = "cpu"


@contextlib.contextmanager
def skip_accuracy() -> Iterator[None]:
    """Keep mmseg's heads from work beside the loss: the accuracy of each batch, which synchronizes, and idle resizing."""
    import torch
    from mmseg.models.decode_heads import decode_head

    accuracy, resize = decode_head.accuracy, decode_head.resize

    def resize_others(input: Tensor, size: Any, **how: Any) -> Tensor:
        return input if input.shape[-2:] == tuple(size) else resize(input=input, size=size, **how)

    decode_head.accuracy, decode_head.resize = lambda *_, **__: torch.zeros(()), resize_others
    try:
        yield
    finally:
        decode_head.accuracy, decode_head.resize = accuracy, resize


def auxiliary_losses(segmentor: Any, features: Any, samples: Any) -> dict[str, Tensor]:
    """Return the losses of a segmentor's auxiliary heads."""
    return segmentor._auxiliary_head_forward_train(features, samples)


def normalize_images(preprocessor: Any, images: Tensor) -> Tensor:
    """Return N x 3 x H x W uint8 BGR images as mmengine's ``ImgDataPreprocessor`` gives them to its network."""
    import torch

    images = images[:, [2, 1, 0]] if preprocessor._channel_conversion else images
    images = images.to(torch.float32, copy=True)
    return images.sub_(preprocessor.mean).div_(preprocessor.std) if preprocessor._enable_normalize else images


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether a module is any kind of BatchNorm."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return isinstance(module, _BatchNorm)


def lerp_all(tensors: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Move each tensor in place toward its end by ``weight``, all in one call."""
    import torch

    torch._foreach_lerp_(tensors, ends, weight)


def select_inputs(head: Any, features: Any) -> Any:
    """Return the features that an mmseg decode head reads, as its ``in_index`` and ``input_transform`` say."""
    return head._transform_inputs(features)


def load_any_checkpoint(path: Path) -> Any:
    """Read a checkpoint of any program as mmengine does, onto the CPU."""
    from mmengine.runner.checkpoint import _load_checkpoint

    return _load_checkpoint(str(path), map_location="cpu")


def set_iteration(loop: Any, iteration: int) -> None:
    """Set how many iterations a training loop of mmengine has done."""
    loop._iter = iteration


def end_workers(loader: Any) -> None:
    """End the workers of a training loader; torch would leave them to a SIGTERM at exit, which they ignore."""
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()
