"""When checkpoints are saved, and how a training goes on from one."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, weights_to_cpu
from mmengine.utils import apply_to

from sslseg.artifacts.checkpoint import BEST, FORMAT, LAST, VERSION, read_checkpoint, save_checkpoint, snapshot_name
from sslseg.compat import set_iteration

SCORES = ("best_score", "best_iteration", "last_score")


class Checkpoints(Hook):
    """Save ``last.pth`` every ``interval`` iterations and at the end, ``best.pth`` whenever validation improves, and snapshots.

    mmengine's CheckpointHook removes the old file before the new one is written, and stores the date, so a full disk
    or a kill can leave nothing, and equal runs give different files.

    Args:
        folder: where the files lie.
        interval: iterations between two savings of ``last.pth``.
        meta: the checkpoint's metadata as plain types: method, config, dataset, split hash.
        resume: go on from ``last.pth`` where there is one.
        snapshots: iterations after which the weights are kept in a file of their own.
    """

    priority = "VERY_LOW"

    def __init__(
        self, folder: Path, *, interval: int, meta: dict[str, Any], resume: bool, snapshots: Collection[int] = ()
    ) -> None:
        self.folder, self.interval, self.meta, self.resume = folder, interval, meta, resume
        self.snapshots = frozenset(snapshots)
        self.best_score, self.best_iteration = -math.inf, 0
        self.last_score: float | None = None
        self.saved_iteration = -1

    def before_train(self, runner: Runner) -> None:
        """Restore weights, optimizer, schedule, best score and iteration from ``last.pth``."""
        path = self.folder / LAST
        if not (self.resume and path.exists()):
            return
        state = read_checkpoint(path)
        unwrap(runner).load_state_dict(state["state_dict"])
        runner.optim_wrapper.load_state_dict(state["optimizer"])
        for scheduler, saved in zip(runner.param_schedulers, state["param_schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        loop = runner.train_loop
        self.saved_iteration = state["meta"]["iteration"]
        set_iteration(loop, self.saved_iteration)
        for name in SCORES:
            setattr(self, name, state["meta"][name])
        runner.optim_wrapper.initialize_count_status(runner.model, loop.iter, loop.max_iters)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        done = batch_idx + 1
        if done in self.snapshots:  # before `last.pth`: a resumed run would not come back to it
            self.save(runner, snapshot_name(done), done)
        if done % self.interval == 0 and not validates_after(runner, done):
            self.save(runner, LAST, done)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        score = (metrics or {}).get(unwrap(runner).task.metric, -math.inf)
        self.last_score = score
        if score > self.best_score:
            self.best_score, self.best_iteration = score, runner.iter
            self.save(runner, BEST, runner.iter)
        self.save(runner, LAST, runner.iter)

    def after_train(self, runner: Runner) -> None:
        if self.saved_iteration != runner.iter:
            self.save(runner, LAST, runner.iter)

    def save(self, runner: Runner, name: str, iteration: int) -> None:
        """Write one checkpoint on the main process; only ``last.pth`` holds optimizer state."""
        if name == LAST:
            self.saved_iteration = iteration
        if not is_main_process():
            return
        meta = dict(format=FORMAT, version=VERSION, iteration=iteration, **self.meta)
        meta.update({name: getattr(self, name) for name in SCORES})
        state: dict[str, Any] = dict(meta=meta, state_dict=dict(weights_to_cpu(unwrap(runner).state_dict())))
        if name == LAST:
            state["optimizer"] = apply_to(runner.optim_wrapper.state_dict(), torch.is_tensor, torch.Tensor.cpu)
            state["param_schedulers"] = [scheduler.state_dict() for scheduler in runner.param_schedulers]
        save_checkpoint(self.folder / name, state)


def unwrap(runner: Runner) -> Any:
    """Return the method itself, without its distributed wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def validates_after(runner: Runner, iteration: int) -> bool:
    """Return whether mmengine's loop validates after so many iterations."""
    loop = runner.train_loop
    return runner.val_loop is not None and (iteration % loop.val_interval == 0 or iteration == loop.max_iters)
