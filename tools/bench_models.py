"""Measure the presets of ``--model``, and write their table: python tools/bench_models.py docs/commands/train.md.

The time is that of a forward and a backward pass of crops that hold noise, relative to the same of the first preset, which is measured
beside each other one in turn. Time of the process counts, not of the clock, so that other programs disturb little.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from mmengine.model import revert_sync_batchnorm
from pages import rewritten
from rich.console import Console

from sslseg.artifacts.run import environment
from sslseg.config.files import load_model, model_files
from sslseg.config.fit import RANDOM, fit_model, weights_source, without_pretrained
from sslseg.registry import MODELS, register_modules

REFERENCE, CLASSES = "deeplabv3plus_lite0", 11
console = Console(highlight=False, soft_wrap=True)


def built(name: str) -> Any:
    """Return the segmentor of a preset with random weights."""
    config = without_pretrained(fit_model(load_model(name).model, num_classes=CLASSES, ignore_index=255))
    return revert_sync_batchnorm(MODELS.build(config)).train()


def took(segmentor: Any, images: torch.Tensor) -> float:
    started = time.process_time()
    segmentor(images).square().mean().backward()
    return time.process_time() - started


def measure(name: str, *, batch_size: int, crop: int, rounds: int) -> tuple[float, float]:
    """Return a preset's parameters in millions, and its time relative to the reference's."""
    torch.set_num_threads(1)
    register_modules()
    segmentor, reference = built(name), built(REFERENCE)
    images = torch.randn(batch_size, 3, crop, crop)
    pairs = [(took(segmentor, images), took(reference, images)) for _ in range(rounds + 1)]
    ratios = [own / other for own, other in pairs[1:]]
    return sum(parameter.numel() for parameter in segmentor.parameters()) / 1e6, statistics.median(ratios)


def source(name: str) -> str:
    """Return where a preset's weights come from, in words."""
    found = weights_source(load_model(name).model, "auto")
    if found == RANDOM:
        return "none: random"
    if found.startswith("package://"):
        return f"pip: `{found.removeprefix('package://').partition('/')[0].replace('_', '-')}`"
    return f"internet: `{found.rpartition('/')[2]}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="documentation page to write the table into")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    rows = []
    for name in sorted(model_files()):
        # Each in a process of its own, so that the memory of one is free for the next.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            size = dict(batch_size=asked.batch_size, crop=asked.crop, rounds=asked.rounds)
            parameters, ratio = process.submit(measure, name, **size).result()
        rows.append((ratio, (f"`{name}`", f"{parameters:.1f}", f"{ratio:.1f}", source(name))))
        console.print(*rows[-1][1])
    headings = ("preset", "parameters (millions)", "time, relative", "ImageNet weights")
    cells = [headings, ("---",) * len(headings), *(row for _, row in sorted(rows))]
    found = ", ".join(f"{name} {value}" for name, value in environment().items())
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    text = f"Forward and backward pass of {asked.batch_size} crops of {asked.crop}, {CLASSES} classes; measured with {found}."
    asked.page.write_text(
        rewritten(asked.page.read_text(), "\n".join([*lines, "", text]), tool="tools/bench_models.py")
    )


if __name__ == "__main__":
    main()
