"""Hooks around single steps: random state by step number, what a method does then, a clean stop, equal buffers."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, all_reduce_params, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sslseg.data.dataset import seed_everything
from sslseg.engine.checkpoints import is_validation_step, unwrap

STEP_STREAM = 1000  # keeps the steps' random numbers apart from those of the streams' draws


class StepSeed(Hook):
    """Seed every step by its number and rank, so that a resumed run draws what an uninterrupted one would."""

    priority = "VERY_HIGH"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        seed_everything(self.seed, STEP_STREAM + get_rank(), batch_idx)


class MethodSteps(Hook):
    """Tell the method which step it takes, and let it follow its student (a teacher's average) after the optimiser."""

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        unwrap(runner).begin_step(batch_idx, runner.max_iters)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        unwrap(runner).after_step()


class StopOnSignal(Hook):
    """On the first SIGINT or SIGTERM finish the step, save and stop; a second one stops at once.

    Ranks agree on the step by a collective every ``AGREE_EVERY`` steps.
    """

    AGREE_EVERY = 10

    def __init__(self) -> None:
        self.requested = False
        self.stopped = False

    def before_train(self, runner: Runner) -> None:
        self.previous = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        requested = self.requested
        if get_world_size() > 1:
            if (batch_idx + 1) % self.AGREE_EVERY:
                return
            flag = torch.tensor(float(requested))
            all_reduce(flag, op="max")
            requested = bool(flag)
        if requested and batch_idx + 1 < runner.max_iters:
            self.stopped = runner.train_loop.stop_training = True

    def restore(self) -> None:
        """Put the previous signal handlers back."""
        for number, handler in getattr(self, "previous", {}).items():
            signal.signal(number, handler)


class SyncBuffers(Hook):
    """Average the ranks' buffers (BatchNorm statistics) before validation and saving: each saw its own images."""

    priority = "ABOVE_NORMAL"

    def __init__(self, interval: int) -> None:
        self.interval = interval

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        step = batch_idx + 1
        if step % self.interval == 0 or is_validation_step(runner, step):
            self.sync(runner)

    def after_train(self, runner: Runner) -> None:
        self.sync(runner)

    def sync(self, runner: Runner) -> None:
        if get_world_size() > 1:
            buffers = [buffer for buffer in unwrap(runner).buffers() if buffer.is_floating_point()]
            all_reduce_params(buffers, op="mean")
