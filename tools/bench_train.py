"""Measure an iteration against its bare network passes in the same process: python tools/bench_train.py [--method NAME ...].

A method is a name that ``--method`` of ``sslseg train`` knows, or the path of a config: ``tools/cct_config.py`` is a stand-in for CCT, an
encoder of stride 8 with thirty auxiliary decoders, for comparing memory.

The bare passes (``SemiSegmentor.bare_passes``) are every network's passes on the same images, already on the device: forward, backward and
the update of the optimizer; no loss, no augmentation, no EMA. The iteration is what mmengine's loop calls: preprocessing, losses, backward
pass, optimizer and every hook, without loading. Both are interleaved, and the median of their ratios is reported, over pairs of rounds in
which each comes first once. Ratios, not times, can be compared between machines. Parts that a method names (``bench_parts``) are measured
alone, as a fraction of an iteration.

``--profile`` lists the costliest operators of ten iterations, and what in a method's losses synchronizes GPU and CPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from pages import rewritten
from rich.console import Console

from sslseg.artifacts.run import Run
from sslseg.catalog import methods
from sslseg.config.assignments import parse_assignment
from sslseg.config.build import TrainOptions, build_config
from sslseg.config.files import method_class
from sslseg.data.labels import ignore_value
from sslseg.data.layouts.shapes import describe
from sslseg.data.pseudo_masks import PseudoMasks
from sslseg.data.reading import label_table, read_mask
from sslseg.distributed import launch
from sslseg.engine.build import build_training
from sslseg.split import SplitOptions, make_split
from sslseg.splits.split import Split
from sslseg.store import LABEL_MAP, StoreHeader, StoreReader, StoreWriter
from sslseg.train import quiet_mmengine

console = Console(highlight=False, soft_wrap=True)
PROFILED_ITERATIONS = 10
# Operators that read a value of the device on the CPU, or copy a map from it.
SYNCHRONIZING = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "cudaStreamSynchronize")


def synchronize() -> None:
    if get_device() == "cuda":
        torch.cuda.synchronize()


def timed(work: Any) -> float:
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def profiled(work: Any) -> Any:
    """Return the profiler's averages over ten calls of ``work``."""
    cuda = get_device() == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PROFILED_ITERATIONS):
            work()
    return profile.key_averages()


def profile_of(iteration: Any, losses: Any) -> dict[str, Any]:
    """Return the costliest operators of an iteration, and what in its losses synchronizes, by iteration."""
    order = f"self_{get_device()}_time_total"
    found = {
        item.key: item.count / PROFILED_ITERATIONS
        for item in profiled(losses)
        if item.key in SYNCHRONIZING or "DtoH" in item.key
    }
    return dict(operators=profiled(iteration).table(sort_by=order, row_limit=15), synchronizations=found)


def peak_memory() -> float:
    """Return the peak of the memory so far, in GiB: the tensors of a GPU, or the whole process on a CPU."""
    if get_device() == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def both_orders(values: list[float]) -> list[float]:
    """Return means of two rounds each, in which bare passes and iteration come first alternately."""
    return [statistics.mean(pair) for pair in zip(values[::2], values[1::2], strict=False)]


def stored_labels(split: Split, folder: Path) -> PseudoMasks:
    """Return pseudo-masks for a measurement: the truth, in a store."""
    samples = split.samples("train")
    colors = tuple((color[0], color[1], color[2]) for color in split.dataset.palette)
    header = StoreHeader(split.dataset.classes, colors, ignore_value(split.dataset.num_classes), len(samples))
    ids = [sample.id for sample in samples]
    with StoreWriter(folder / "masks.h5", header=header, ids=ids, kinds={"masks": LABEL_MAP}) as writer:
        for sample in samples:
            writer.add(sample.id, mask=read_mask(str(sample.mask), label_table(split.dataset)))
    return PseudoMasks(StoreReader(writer.finalize()))


def measure(options: TrainOptions, *, iterations: int, profile: bool) -> dict[str, Any]:
    """Return medians of the bare passes, of the whole iteration and of loading a batch, and their ratios."""
    launch("none", options.device)
    split = make_split(describe(), SplitOptions(ratio="1/8"))
    with tempfile.TemporaryDirectory() as folder, quiet_mmengine():
        run = Run(Path(folder) / "run")
        run.checkpoints.mkdir(parents=True)
        config = build_config(split, options)
        for name in config.method:
            if name.endswith("warmup"):
                config.method[name] = 0.0  # what follows is measured
        masks = stored_labels(split, Path(folder)) if method_class(config).needs_pseudo_masks else None
        training = build_training(run, split, config, options, masks)
        runner = training.runner
        times: dict[str, list[float]] = dict(bare=[], iteration=[], load=[])
        state: dict[str, Any] = {}

        def interleave(_: Any) -> None:
            state["before"] = peak_memory()
            loop = runner.train_loop
            batches = iter(loop.dataloader)
            model = runner.model

            def load() -> None:
                state["batch"] = next(batches)

            def bare() -> None:
                # Squares have a minimum: logits that grew without limit would make exponentials denormal, and the passes slow.
                outputs = model.bare_passes(state["views"])
                runner.optim_wrapper.update_params(torch.stack([one.float().square().mean() for one in outputs]).sum())

            works = dict(bare=bare, iteration=lambda: loop.run_iter(state["batch"]))
            for number in range(iterations):
                model.train()
                times["load"].append(timed(load))
                with torch.no_grad():
                    state["views"] = model.data_preprocessor(state["batch"], True)["batch"]
                # Alternately: whichever comes first competes with the loader, which makes the next batch.
                for name in sorted(works, reverse=bool(number % 2)):
                    times[name].append(timed(works[name]))
                for name, work in model.bench_parts(state["views"]).items():
                    times.setdefault(f"part {name}", []).append(timed(work))
            if profile:
                state["profile"] = profile_of(works["iteration"], lambda: model.loss(state["views"]))
            loop.stop_training = True

        hook = training.monitor
        original = hook.before_train_epoch
        hook.before_train_epoch = lambda r: (original(r), interleave(r))[0]  # type: ignore[method-assign]
        try:
            runner.train()
        finally:
            training.close()
    late = {name: both_orders(values[len(values) // 5 // 2 * 2 :]) for name, values in times.items()}
    medians = {name: statistics.median(values) for name, values in late.items()}
    # Neighbors are compared: the machine's own pace drifts from one second to the next.
    ratios = [iteration / bare for iteration, bare in zip(late["iteration"], late["bare"], strict=True)]
    return dict(
        method=config.method.type,
        encoder=config.model.backbone.type,
        head=config.model.decode_head.type.removesuffix("Head"),
        device=get_device(),
        iterations=iterations,
        bare_ms=1e3 * medians["bare"],
        iteration_ms=1e3 * medians["iteration"],
        iteration_ratio=statistics.median(ratios),
        iteration_ratios=ratios,
        load_ratio=medians["load"] / medians["bare"],
        parts={
            name.removeprefix("part "): median / medians["iteration"]
            for name, median in medians.items()
            if name.startswith("part ")
        },
        memory_gib=peak_memory(),
        **state.get("profile", {}),
        training_memory_gib=peak_memory() - (0.0 if get_device() == "cuda" else state["before"]),
    )


HEADINGS = (
    "method",
    "encoder",
    "decode head",
    "device",
    "batch",
    "crop",
    "iteration / bare passes",
    "waiting for the loader / bare passes",
    "parts of an iteration",
    "peak memory (GiB)",
    "of it since training began",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", nargs="+", help="names of methods, or paths of configs; by default every method")
    parser.add_argument("--model")
    parser.add_argument("--iterations", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=8, help="labeled images, and as many others")
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", dest="assignments", action="append", default=[], help="a.b=value of the config")
    parser.add_argument("--page", type=Path, help="documentation page to write the figures into")
    parser.add_argument("--profile", action="store_true", help="list the costliest operators, and what synchronizes")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of text")
    asked = parser.parse_args()
    rows = []
    for name in asked.method or [method.name for method in methods()]:
        options = TrainOptions(
            method=name,
            config=name if name.endswith(".py") else None,
            model=asked.model,
            iterations=10 * asked.iterations,
            batch_size=asked.batch_size,
            crop=(asked.crop, asked.crop),
            device=asked.device,
            pretrained="none",
            assignments=dict(map(parse_assignment, asked.assignments)),
        )
        # Each in a process of its own: the peak of its memory includes what went before.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            report = process.submit(measure, options, iterations=asked.iterations, profile=asked.profile).result()
        row = (
            report["method"],
            report["encoder"],
            report["head"],
            report["device"],
            str(asked.batch_size),
            str(asked.crop),
            f"{report['iteration_ratio']:.2f}",
            f"{report['load_ratio']:.2f}",
            ", ".join(f"{part} {fraction:.1%}" for part, fraction in report["parts"].items()) or "-",
            f"{report['memory_gib']:.1f}",
            f"{report['training_memory_gib']:.2f}",
        )
        rows.append(row)
        if asked.json:
            print(json.dumps(report))
        else:
            console.print(", ".join(f"{heading}: {value}" for heading, value in zip(HEADINGS, row, strict=True)))
            if asked.profile:
                console.print(report["operators"], markup=False)
                console.print(
                    "synchronizations in the losses of an iteration:", report["synchronizations"], markup=False
                )
    if asked.page is not None:
        lines = ["| " + " | ".join(cells) + " |" for cells in (HEADINGS, ["---"] * len(HEADINGS), *rows)]
        asked.page.write_text(rewritten(asked.page.read_text(), "\n".join(lines), tool="tools/bench_train.py"))


if __name__ == "__main__":
    main()
