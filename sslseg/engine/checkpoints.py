"""Last and best checkpoint, written whole or not at all, without anything that differs between equal runs."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, weights_to_cpu
from mmengine.utils import apply_to

from sslseg.files import atomic_write

FORMAT, VERSION = "sslseg-checkpoint", 1
LAST, BEST = "last.pth", "best.pth"
SCORES = ("best_score", "best_iter", "last_score")


class Checkpoints(Hook):
    """Save ``last.pth`` every ``interval`` steps and at the end, ``best.pth`` whenever validation improves.

    mmengine's CheckpointHook removes the old file before the new one is written, and stores the date, so a full disk
    or a kill can leave nothing, and equal runs give different files.

    Args:
        folder: where the two files lie.
        interval: steps between two savings of ``last.pth``.
        identity: what the checkpoint tells of itself, as plain types: method, config, dataset, split hash.
        resume: go on from ``last.pth`` where there is one.
    """

    priority = "VERY_LOW"

    def __init__(self, folder: Path, *, interval: int, identity: dict[str, Any], resume: bool) -> None:
        self.folder, self.interval, self.identity, self.resume = folder, interval, identity, resume
        self.best_score, self.best_iter = -math.inf, 0
        self.last_score: float | None = None
        self.saved_iter = -1

    def before_train(self, runner: Runner) -> None:
        """Restore weights, optimizer, schedule, best score and step from ``last.pth``."""
        path = self.folder / LAST
        if not (self.resume and path.exists()):
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        unwrap(runner).load_state_dict(state["state_dict"])
        runner.optim_wrapper.load_state_dict(state["optimizer"])
        for scheduler, saved in zip(runner.param_schedulers, state["param_schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        loop = runner.train_loop
        loop._iter = self.saved_iter = state["meta"]["iter"]
        for name in SCORES:
            setattr(self, name, state["meta"][name])
        runner.optim_wrapper.initialize_count_status(runner.model, loop.iter, loop.max_iters)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        step = batch_idx + 1
        if step % self.interval == 0 and not is_validation_step(runner, step):
            self.save(runner, LAST, step)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        score = (metrics or {}).get(unwrap(runner).task.metric, -math.inf)
        self.last_score = score
        if score > self.best_score:
            self.best_score, self.best_iter = score, runner.iter
            self.save(runner, BEST, runner.iter)
        self.save(runner, LAST, runner.iter)

    def after_train(self, runner: Runner) -> None:
        if self.saved_iter != runner.iter:
            self.save(runner, LAST, runner.iter)

    def save(self, runner: Runner, name: str, step: int) -> None:
        """Write one checkpoint on the main process; ``best.pth`` holds no optimizer state."""
        if name == LAST:
            self.saved_iter = step
        if not is_main_process():
            return
        meta = dict(format=FORMAT, version=VERSION, iter=step, epoch=0, **self.identity)
        meta.update({name: getattr(self, name) for name in SCORES})
        state: dict[str, Any] = dict(meta=meta, state_dict=dict(weights_to_cpu(unwrap(runner).state_dict())))
        if name == LAST:
            state["optimizer"] = apply_to(runner.optim_wrapper.state_dict(), torch.is_tensor, torch.Tensor.cpu)
            state["param_schedulers"] = [scheduler.state_dict() for scheduler in runner.param_schedulers]
        save_atomically(self.folder / name, state)


def save_atomically(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; raise OSError, where torch.save on a full disk raises an error of its own."""
    buffer = io.BytesIO()
    torch.save(canonical(state), buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def canonical(value: Any) -> Any:
    """Rebuild containers and intern strings: pickle notes which objects are the same one, which is no part of the state."""
    if isinstance(value, dict):
        return {canonical(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(canonical(item) for item in value)
    # A copy first: a string of a resumed run is another object than the same string of the code.
    return sys.intern(str(value)) if isinstance(value, str) else value


def unwrap(runner: Runner) -> Any:
    """Return the method itself, without its distributed wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def is_validation_step(runner: Runner, step: int) -> bool:
    """Tell whether mmengine's loop validates after ``step`` steps."""
    loop = runner.train_loop
    return runner.val_loop is not None and (step % loop.val_interval == 0 or step == loop.max_iters)
