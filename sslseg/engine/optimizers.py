"""Several optimizers as one: each updates its own part of a method, all after one backward pass.

mmengine's OptimWrapperDict leaves backward passes and updates to a ``train_step`` of the model, which its distributed
wrapper does not call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIMIZERS
from torch import nn
from torch.optim import Optimizer

from sslseg.errors import UserError
from sslseg.registry import REGISTRIES


class JointOptimizer(Optimizer):
    """Optimizers that update together; schedulers and gradient scalers see the parameter groups of all."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in parts for group in part.param_groups], defaults={})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return dict(parts=[part.state_dict() for part in self.parts])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # Loading gives a part new groups.
        self.param_groups = [group for part in self.parts for group in part.param_groups]


@REGISTRIES["OPTIM_WRAPPER_CONSTRUCTORS"].register_module()
class JointOptimizerConstructor(DefaultOptimWrapperConstructor):
    """Builds the config's ``optimizer`` for a method, except for the submodules that ``parts`` names with their own.

    A part that the method's class names in ``optimizers`` may be switched off; any other must exist.

    Args:
        optim_wrapper_cfg: as mmengine's, with ``parts``: optimizer configs by the name of a submodule.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        settings = dict(optim_wrapper_cfg)
        self.parts: dict[str, Any] = dict(settings.pop("parts"))
        super().__init__(settings, paramwise_cfg)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        method: Any = model.module if is_model_wrapper(model) else model
        children = dict(method.named_children())
        unknown = sorted(self.parts.keys() - children.keys() - method.optimizers.keys())
        if unknown:
            raise UserError(
                f"optimizers.{unknown[0]}: the method has no part of that name; it has {', '.join(children)}"
            )
        parts = {name: settings for name, settings in self.parts.items() if name in children}
        if not parts:
            return super().__call__(model)
        others = {name: child for name, child in children.items() if name not in parts}
        wrapper = super().__call__(nn.ModuleDict(others))
        own = [
            OPTIMIZERS.build(dict(settings, params=list(children[name].parameters())))
            for name, settings in parts.items()
        ]
        wrapper.optimizer = JointOptimizer([wrapper.optimizer, *own])
        return wrapper
