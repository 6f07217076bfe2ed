"""The modes in which a network predicts mixtures: neither lets them change BatchNorm's running statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from sslseg.compat import is_batch_norm


@contextlib.contextmanager
def freeze_running_stats(network: nn.Module) -> Iterator[None]:
    """Freeze BatchNorm's running statistics; a training pass is still normalized with its own batch."""
    modules: list[Any] = [module for module in network.modules() if is_batch_norm(module)]
    updating = [module for module in modules if module.training and module.track_running_stats]
    for module in updating:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in updating:
            module.track_running_stats = True


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Let BatchNorm use its running statistics and turn dropout off; afterwards each module is in the mode that it was in."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
