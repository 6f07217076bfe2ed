"""Measure a training step against its bare network passes in the same process: python tools/bench_train.py [--method NAME].

The bare passes are the student's forward and backward pass and the optimiser's step on the same batch, already on the device. The
step is what mmengine's loop calls: preprocessing, losses, backward pass, optimiser and every hook, without loading. Both are
interleaved, step by step, and medians count. Ratios, not times, can be compared between machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from pages import rewritten
from rich.console import Console

from sslseg.data.layouts.shapes import describe
from sslseg.distributed import launch
from sslseg.engine.build import build_training
from sslseg.run import Run
from sslseg.split import SplitOptions, make_split
from sslseg.train import TrainOptions, build_config, quiet_mmengine


def synchronize() -> None:
    if get_device() == "cuda":
        torch.cuda.synchronize()


def timed(work: Any) -> float:
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def measure(options: TrainOptions, *, steps: int) -> dict[str, Any]:
    """Return medians of the bare passes, of the whole step and of loading a batch, and their ratios."""
    launch("none", options.device)
    split = make_split(describe(), SplitOptions(ratio="1/8"))
    with tempfile.TemporaryDirectory() as folder, quiet_mmengine():
        run = Run(Path(folder) / "run")
        run.checkpoints.mkdir(parents=True)
        config = build_config(split, options)
        training = build_training(run, split, config, options)
        runner = training.runner
        times: dict[str, list[float]] = dict(bare=[], step=[], load=[])
        state: dict[str, Any] = {}

        def interleave(_: Any) -> None:
            loop = runner.train_loop
            batches = iter(loop.dataloader)
            model = runner.model

            def load() -> None:
                state["batch"] = next(batches)

            def bare() -> None:
                data = state["inputs"]
                losses = model.student.loss(data["inputs"], data["data_samples"])
                total = sum(value for name, value in losses.items() if "loss" in name)
                runner.optim_wrapper.update_params(total)

            for number in range(steps):
                model.train()
                times["load"].append(timed(load))
                with torch.no_grad():
                    state["inputs"] = model.data_preprocessor(state["batch"], True)["batch"]["labeled_weak"]
                # In turns: whichever comes second finds warmer caches.
                works = dict(bare=bare, step=lambda: loop.run_iter(state["batch"]))
                for name in sorted(works, reverse=bool(number % 2)):
                    times[name].append(timed(works[name]))
            loop.stop_training = True

        hook = training.monitor
        original = hook.before_train_epoch
        hook.before_train_epoch = lambda r: (original(r), interleave(r))[0]  # type: ignore[method-assign]
        try:
            runner.train()
        finally:
            training.close()
    medians = {name: statistics.median(values[len(values) // 5 :]) for name, values in times.items()}
    return dict(
        method=options.method,
        model=options.model or "deeplabv3plus_r18s",
        device=get_device(),
        steps=steps,
        bare_ms=1e3 * medians["bare"],
        step_ms=1e3 * medians["step"],
        step_ratio=medians["step"] / medians["bare"],
        load_ratio=medians["load"] / medians["bare"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="supervised")
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--page", type=Path, help="documentation page to write the figures into")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a line")
    asked = parser.parse_args()
    options = TrainOptions(
        method=asked.method,
        model=asked.model,
        iters=10 * asked.steps,
        batch_size=asked.batch_size,
        crop=(asked.crop, asked.crop),
        device=asked.device,
        pretrained="none",
    )
    report = measure(options, steps=asked.steps)
    if asked.json:
        print(json.dumps(report))
        return
    headings = (
        "method",
        "model",
        "device",
        "batch",
        "crop",
        "step / bare passes",
        "waiting for the loader / bare passes",
    )
    row = (
        report["method"],
        report["model"],
        report["device"],
        str(asked.batch_size),
        str(asked.crop),
        f"{report['step_ratio']:.2f}",
        f"{report['load_ratio']:.2f}",
    )
    if asked.page is not None:
        text = "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), row))
        asked.page.write_text(rewritten(asked.page.read_text(), text, tool="tools/bench_train.py"))
    Console(highlight=False).print(", ".join(f"{name}: {value}" for name, value in zip(headings, row, strict=True)))


if __name__ == "__main__":
    main()
