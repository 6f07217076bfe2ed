"""What a training shows: metrics as JSON lines, a log file, a Rich display or plain lines, TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sslseg.artifacts.run import METRICS
from sslseg.engine.checkpoints import unwrap
from sslseg.engine.silence import Silence
from sslseg.files import write_text
from sslseg.progress import PLAIN_INTERVAL_SECONDS, note, stderr

LOG = "train.log"


class Monitor(Hook):
    """Average the losses on the device and read them every ``interval`` iterations only: no GPU-CPU synchronization between.

    Args:
        folder: the run directory; gets ``metrics.jsonl``, ``train.log`` and, if TensorBoard is installed, ``tensorboard/``.
        interval: iterations between two records.
        classes: their names.
        show: whether to show anything on stderr.
    """

    priority = "LOW"

    def __init__(self, folder: Path, *, interval: int, classes: Sequence[str] = (), show: bool = True) -> None:
        self.folder, self.interval = folder, interval
        self.silence = Silence(classes)
        self.show = show and is_main_process()
        self.sums: dict[str, tuple[torch.Tensor, int]] = {}
        self.number = 0
        self.scores = ""
        self.best = (-1.0, 0)
        self.losses = ""
        self.shown = 0.0

    def before_train_epoch(self, runner: Runner) -> None:
        """Begin; at this point, after every ``before_train``, the iteration of a resumed run is set."""
        self.started = self.since = time.monotonic()
        self.first = self.silence.first = runner.iter
        if is_main_process():
            self._drop_after(runner.iter)
            self.board = _summary_writer(self.folder / "tensorboard", runner.iter)
        for message in unwrap(runner).messages:
            self._line(message, always=True)
        if self.show and stderr.is_terminal:
            columns = (
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.description}"),
            )
            self.bar = Progress(*columns, console=stderr)
            self.bar.start()
            self.task = self.bar.add_task("starting", total=runner.max_iters, completed=runner.iter)

    def _drop_after(self, iteration: int) -> None:
        """Remove records of iterations that a resumed run repeats."""
        path = self.folder / METRICS
        if path.exists():
            lines = path.read_text().splitlines()
            write_text(path, "".join(line + "\n" for line in lines if json.loads(line)["iteration"] <= iteration))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        for name, value in outputs.items():
            value = torch.as_tensor(value).detach()
            before, number = self.sums.get(name, (0.0, 0))
            self.sums[name] = before + value, number + 1
        self.number += 1
        iteration = batch_idx + 1
        if iteration % self.interval == 0 or iteration == runner.max_iters:
            self._record(runner, iteration)
        self._refresh(iteration)

    def _refresh(self, iteration: int) -> None:
        if self.show and stderr.is_terminal:
            self.bar.update(self.task, completed=iteration, description=f"{self.losses}{self.scores}")

    def _record(self, runner: Runner, iteration: int) -> None:
        names = sorted(self.sums)
        means = torch.stack([self.sums[name][0].float().mean() / self.sums[name][1] for name in names])
        all_reduce(means, op="mean")
        values = dict(zip(names, means.tolist(), strict=True))
        now = time.monotonic()
        seconds = (now - self.since) / self.number
        self.since, self.sums, self.number = now, {}, 0
        rates = next(iter(runner.optim_wrapper.get_lr().values()))
        method = unwrap(runner)
        more = method.log_values()
        pace = dict(lr=max(rates), seconds_per_iteration=round(seconds, 5))
        self._write(dict(iteration=iteration, **values, **more, **pace))
        self.losses = f"loss {values['loss']:.3f} "
        left = (runner.max_iters - iteration) * (now - self.started) / max(iteration - self.first, 1)
        self._line(
            f"iteration {iteration}/{runner.max_iters} loss {values['loss']:.4f} lr {max(rates):.2e}"
            f" {seconds:.3f} s/iteration, {_duration(left)} left",
            always=iteration == runner.max_iters,
        )
        last = iteration == runner.max_iters
        for message in self.silence.messages(iteration, values, more, epoch=method.iterations_per_epoch, last=last):
            self._line(message, always=True)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        record = {key: value for key, value in (metrics or {}).items() if key != "confusion"}
        self._write(dict(iteration=runner.iter, val=record, protocol=str(runner.val_loop.protocol)))
        name = unwrap(runner).task.metric
        score = record[name]
        if score > self.best[0]:
            self.best = (score, runner.iter)
        self.scores = f"{name} {score:.2f} (best {self.best[0]:.2f} at {self.best[1]})"
        self._line(f"iteration {runner.iter}/{runner.max_iters} {self.scores}", always=True)
        self._refresh(runner.iter)
        self.since = time.monotonic()

    def after_train(self, runner: Runner) -> None:
        self.close()

    def close(self) -> None:
        """Stop the display; also called when training ends with an exception."""
        if hasattr(self, "bar"):
            self.bar.stop()
        if getattr(self, "board", None) is not None:
            self.board.close()

    def _write(self, record: dict[str, Any]) -> None:
        if not is_main_process():
            return
        with (self.folder / METRICS).open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.board is not None:
            scalars = {**record, **{f"val/{key}": value for key, value in record.get("val", {}).items()}}
            for key, value in scalars.items():
                if isinstance(value, (int, float)) and key != "iteration":
                    self.board.add_scalar(key, value, record["iteration"])

    def _line(self, text: str, *, always: bool) -> None:
        if not is_main_process():
            return
        with (self.folder / LOG).open("a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        now = time.monotonic()
        if self.show and not stderr.is_terminal and (always or now - self.shown >= PLAIN_INTERVAL_SECONDS):
            note(text)
            self.shown = now


def _summary_writer(folder: Path, iteration: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=iteration)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
