"""Hooks around single iterations: random state by number, what a method does then, a clean stop, equal buffers."""

from __future__ import annotations

import signal
from collections.abc import Collection
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, all_reduce_params, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sslseg.config.lengths import Lengths
from sslseg.data.dataset import seed_everything
from sslseg.engine.checkpoints import unwrap, validates_after

ITERATION_STREAM = 1000  # keeps the iterations' random numbers apart from those of the streams' samples


class IterationSeed(Hook):
    """Seed every iteration by its number and rank, so that a resumed run samples what an uninterrupted one would."""

    priority = "VERY_HIGH"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        seed_everything(self.seed, ITERATION_STREAM + get_rank(), batch_idx)


class MethodIterations(Hook):
    """Give the method the length of the training and the number of each iteration; update its EMAs after the optimizer."""

    priority = "VERY_HIGH"

    def __init__(self, lengths: Lengths) -> None:
        self.lengths = lengths

    def before_train(self, runner: Runner) -> None:
        unwrap(runner).begin_training(self.lengths.iterations, self.lengths.iterations_per_epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        unwrap(runner).begin_iteration(batch_idx)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        unwrap(runner).after_iteration()


class StopOnSignal(Hook):
    """On the first SIGINT or SIGTERM finish the iteration, save and stop; a second one stops at once.

    Ranks agree on the iteration by a collective every ``AGREE_EVERY`` iterations.
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
    """Average the ranks' buffers (BatchNorm statistics) before validation and saving: each has seen its own images."""

    priority = "ABOVE_NORMAL"

    def __init__(self, interval: int, snapshots: Collection[int] = ()) -> None:
        self.interval, self.snapshots = interval, frozenset(snapshots)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        done = batch_idx + 1
        if done % self.interval == 0 or done in self.snapshots or validates_after(runner, done):
            self.sync(runner)

    def after_train(self, runner: Runner) -> None:
        self.sync(runner)

    def sync(self, runner: Runner) -> None:
        if get_world_size() > 1:
            buffers = [buffer for buffer in unwrap(runner).buffers() if buffer.is_floating_point()]
            all_reduce_params(buffers, op="mean")
