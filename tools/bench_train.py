"""Measure a training step against its bare network passes in the same process: python tools/bench_train.py [--method NAME ...].

``cct`` is no method of sslseg: a stand-in for CCT, an encoder of stride 8 with thirty auxiliary decoders, with whose memory
GuidedMix-Net's is compared.

The bare passes are every network's passes on the same images, already on the device: the student's (with a second branch) forward and
backward and the optimiser's step, and the teacher's forward; no loss, no augmentation, no average. The step is what mmengine's loop
calls: preprocessing, losses, backward pass, optimiser and every hook, without loading. Both are interleaved, step by step, and
the median of their ratios counts, over pairs of rounds in which each comes first once. Ratios, not times, can be compared
between machines.

``--profile`` lists the costliest operators of ten steps, and what in a method's losses makes the host wait for the device. The
share of U2PL's contrastive part is that of partition, bank, loss and its backward pass, against steps in which they are left
out and the projection heads' passes remain.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.device import get_device
from pages import rewritten
from passes import bare_passes, passes
from rich.console import Console

from sslseg.config import parse_assignment
from sslseg.data.files import label_table, read_mask
from sslseg.data.labels import ignore_value
from sslseg.data.layouts.shapes import describe
from sslseg.data.pseudo import PseudoMasks
from sslseg.distributed import launch
from sslseg.engine.build import build_training
from sslseg.registry import METHODS
from sslseg.run import Run
from sslseg.split import Split, SplitOptions, make_split
from sslseg.store import StoreHeader, StoreReader, StoreWriter
from sslseg.train import TrainOptions, build_config, quiet_mmengine

CCT = "cct"
MODELS = dict.fromkeys(("guidedmix", CCT), "mitrans_r18s")  # where it is not the usual one
console = Console(highlight=False, soft_wrap=True)
PROFILED_STEPS = 10


def synchronize() -> None:
    if get_device() == "cuda":
        torch.cuda.synchronize()


def timed(work: Any) -> float:
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def pipeline(model: Any, batch: Any) -> None:
    """Run C on both models' predictions of the labelled images, here their truth."""
    labeled = batch["labeled_weak"]
    both = dict(labels=labeled["labels"].repeat(2, 1, 1))
    model.task.flaws(
        torch.full(
            (len(both["labels"]), model.task.channels, *both["labels"].shape[1:]), 0.1, device=labeled["labels"].device
        ),
        both,
    )


@contextlib.contextmanager
def without_contrast(model: Any) -> Iterator[None]:
    """Leave partition, bank and contrastive loss of U2PL out; the passes of the projection heads remain."""

    def passes_alone(features: torch.Tensor, keys: torch.Tensor, *_: Any) -> torch.Tensor:
        with torch.no_grad():
            model.key_projection.network(keys)
        return model.projection(features).square().mean()

    with (
        mock.patch.object(model, "compare", passes_alone),
        mock.patch.object(model, "negatives_of", return_value=torch.tensor(data=True)),
        mock.patch("sslseg.functional.contrast.quantile", return_value=torch.tensor(1.0)),
    ):
        yield


def profiled(work: Any) -> Any:
    """Return the profiler's averages over ten calls of ``work``."""
    cuda = get_device() == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PROFILED_STEPS):
            work()
    return profile.key_averages()


def profile_of(step: Any, losses: Any) -> dict[str, Any]:
    """Return the costliest operators of a step, and what in its losses makes the host wait, by step."""
    order = f"self_{get_device()}_time_total"
    waits = {
        item.key: item.count / PROFILED_STEPS for item in profiled(losses) if item.key in WAITS or "DtoH" in item.key
    }
    return dict(operators=profiled(step).table(sort_by=order, row_limit=15), waits=waits)


# Operators that read a value of the device on the host, or copy a map from it.
WAITS = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "cudaStreamSynchronize")


def peak_memory() -> float:
    """Return the most memory that was held so far, in GiB: the tensors of a GPU, or the whole process on a CPU."""
    if get_device() == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def both_orders(values: list[float]) -> list[float]:
    """Return means of two rounds each, in which bare passes and step come first by turns."""
    return [statistics.mean(pair) for pair in zip(values[::2], values[1::2], strict=False)]


def stored_labels(split: Split, folder: Path) -> PseudoMasks:
    """Return pseudo-masks for a measurement: the truth, in a store."""
    samples = split.samples("train")
    colors = tuple((color[0], color[1], color[2]) for color in split.dataset.palette)
    header = StoreHeader(split.dataset.classes, colors, ignore_value(split.dataset.num_classes), len(samples))
    with StoreWriter(folder / "masks.h5", header=header, ids=[sample.id for sample in samples]) as writer:
        for sample in samples:
            writer.add(sample.id, mask=read_mask(str(sample.mask), label_table(split.dataset)))
    return PseudoMasks(StoreReader(writer.finalize()))


def measure(options: TrainOptions, *, steps: int, profile: bool) -> dict[str, Any]:
    """Return medians of the bare passes, of the whole step and of loading a batch, and their ratios."""
    launch("none", options.device)
    split = make_split(describe(), SplitOptions(ratio="1/8"))
    with tempfile.TemporaryDirectory() as folder, quiet_mmengine():
        run = Run(Path(folder) / "run")
        run.checkpoints.mkdir(parents=True)
        config = build_config(split, replace(options, method="guidedmix") if options.method == CCT else options)
        if options.method == CCT:
            config.method = dict(type="AuxiliaryDecoders", decoders=30)
            # CCT's encoder is a dilated ResNet of stride 8, as PSPNet's.
            config.model.backbone.update(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
            config.model.decode_head.strides = (4, 8, 8, 8)
        if "warmup" in config.method:
            config.method.warmup = 0.0  # what follows it is measured
        masks = stored_labels(split, Path(folder)) if METHODS.get(config.method.type).needs_pseudo_masks else None
        training = build_training(run, split, config, options, masks)
        runner = training.runner
        times: dict[str, list[float]] = dict(bare=[], step=[], load=[], c=[], plain=[])
        state: dict[str, Any] = {}

        def interleave(_: Any) -> None:
            state["before"] = peak_memory()
            loop = runner.train_loop
            batches = iter(loop.dataloader)
            model = runner.model

            def load() -> None:
                state["batch"] = next(batches)

            def bare() -> None:
                runner.optim_wrapper.update_params(bare_passes(model, *state["images"]))

            def plain() -> None:
                with without_contrast(model):
                    loop.run_iter(state["batch"])

            for number in range(steps):
                model.train()
                times["load"].append(timed(load))
                with torch.no_grad():
                    batch = model.data_preprocessor(state["batch"], True)["batch"]
                    state["images"] = passes(model, batch)
                    if hasattr(model, "right"):
                        times["c"].append(timed(functools.partial(pipeline, model, batch)))
                # In turns: whichever comes first competes with the loader, which makes the next batch.
                works = dict(bare=bare, step=lambda: loop.run_iter(state["batch"]))
                if hasattr(model, "contrast"):
                    works["plain"] = plain
                for name in sorted(works, reverse=bool(number % 2)):
                    times[name].append(timed(works[name]))
            if profile:
                state["profile"] = profile_of(works["step"], lambda: model.loss(batch))
            loop.stop_training = True

        hook = training.monitor
        original = hook.before_train_epoch
        hook.before_train_epoch = lambda r: (original(r), interleave(r))[0]  # type: ignore[method-assign]
        try:
            runner.train()
        finally:
            training.close()
    late = {name: both_orders(values[len(values) // 5 // 2 * 2 :]) for name, values in times.items()}
    medians = {name: statistics.median(values) for name, values in late.items() if values}
    # Neighbours are compared: the machine's own pace drifts from one second to the next.
    ratios = [step / bare for step, bare in zip(late["step"], late["bare"], strict=True)]
    contrast = [1.0 - plain / step for step, plain in zip(late["step"], late["plain"], strict=False)]
    return dict(
        method=options.method,
        model=options.model or MODELS.get(options.method, "deeplabv3plus_r18s"),
        device=get_device(),
        steps=steps,
        bare_ms=1e3 * medians["bare"],
        step_ms=1e3 * medians["step"],
        step_ratio=statistics.median(ratios),
        step_ratios=ratios,
        load_ratio=medians["load"] / medians["bare"],
        c_share=medians["c"] / medians["step"] if "c" in medians else None,
        contrast_share=statistics.median(contrast) if contrast else None,
        memory_gib=peak_memory(),
        **state.get("profile", {}),
        training_memory_gib=peak_memory() - (0.0 if get_device() == "cuda" else state["before"]),
    )


HEADINGS = (
    "method",
    "model",
    "device",
    "batch",
    "crop",
    "step / bare passes",
    "waiting for the loader / bare passes",
    "C / step",
    "contrast / step",
    "peak memory (GiB)",
    "of it since training began",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--method",
        nargs="+",
        default=["supervised", "mean-teacher", "cutmix", "three-stage", "gct", "u2pl", "guidedmix", CCT],
    )
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=8, help="labelled images, and as many others")
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", dest="assignments", action="append", default=[], help="a.b=value of the config")
    parser.add_argument("--page", type=Path, help="documentation page to write the figures into")
    parser.add_argument(
        "--profile", action="store_true", help="list the costliest operators, and what waits for the device"
    )
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of text")
    asked = parser.parse_args()
    rows = []
    for method in asked.method:
        options = TrainOptions(
            method=method,
            model=asked.model,
            iters=10 * asked.steps,
            batch_size=asked.batch_size,
            crop=(asked.crop, asked.crop),
            device=asked.device,
            pretrained="none",
            assignments=dict(map(parse_assignment, asked.assignments)),
        )
        # Each in a process of its own: the most memory that one has held includes what went before.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            report = process.submit(measure, options, steps=asked.steps, profile=asked.profile).result()
        ratios = (f"{report[name]:.2f}" for name in ("step_ratio", "load_ratio"))
        shares = ("-" if report[name] is None else f"{report[name]:.1%}" for name in ("c_share", "contrast_share"))
        row = (method, report["model"], report["device"], str(asked.batch_size), str(asked.crop), *ratios, *shares)
        row = (*row, f"{report['memory_gib']:.1f}", f"{report['training_memory_gib']:.2f}")
        rows.append(row)
        if asked.json:
            print(json.dumps(report))
        else:
            console.print(", ".join(f"{name}: {value}" for name, value in zip(HEADINGS, row, strict=True)))
            if asked.profile:
                console.print(report["operators"], markup=False)
                console.print("in the losses of a step the host reads from the device:", report["waits"], markup=False)
    if asked.page is not None:
        lines = ["| " + " | ".join(cells) + " |" for cells in (HEADINGS, ["---"] * len(HEADINGS), *rows)]
        asked.page.write_text(rewritten(asked.page.read_text(), "\n".join(lines), tool="tools/bench_train.py"))


if __name__ == "__main__":
    main()
