"""Measure the store against PNG files: size, and time to read masks in random order as training does.

    python tools/bench_store.py [--masks DIR] [--page PAGE] [--json]

Masks are those of the synthetic dataset and, with ``--masks``, of another one. Ratios are store / PNG: below 1 is
better. Rounds of both are interleaved and the median is reported, since absolute times mean little on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pages import rewritten
from rich.console import Console
from rich.table import Table

from sslseg.data import synthetic
from sslseg.data.reading import read_raw_mask
from sslseg.store import StoreHeader, StoreReader, StoreWriter


def synthetic_masks(count: int, *, size: int) -> dict[str, np.ndarray]:
    """Return ``count`` masks of the synthetic dataset, size x size."""
    return {f"{index:06d}": synthetic.draw(index, seed=0, size=size)[1] for index in range(count)}


def folder_masks(folder: Path) -> dict[str, np.ndarray]:
    """Return every PNG under ``folder``."""
    paths = sorted(folder.rglob("*.png"))
    return {path.relative_to(folder).with_suffix("").as_posix(): read_raw_mask(path) for path in paths}


def measure(masks: dict[str, np.ndarray], folder: Path, *, rounds: int, own_bytes: int | None = None) -> dict[str, Any]:
    """Write ``masks`` both ways into ``folder`` and return sizes, times and ratios."""
    pngs: dict[str, Path] = {}
    started = time.perf_counter()
    for name, mask in masks.items():
        pngs[name] = folder / "png" / f"{name}.png"
        pngs[name].parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(pngs[name]), mask)
    png_write = time.perf_counter() - started
    classes = tuple(map(str, range(255)))
    header = StoreHeader(classes=classes, palette=((0, 0, 0),) * 255, ignore_index=255, total=len(masks))
    started = time.perf_counter()
    with StoreWriter(folder / "store.h5", header=header, ids=list(masks)) as writer:
        for name, mask in masks.items():
            writer.add(name, mask=mask)
    path = writer.finalize()
    store_write = time.perf_counter() - started
    store = StoreReader(path)
    names = list(masks)
    times: dict[str, list[float]] = dict(png=[], store=[])
    readers: dict[str, Callable[[str], Any]] = dict(
        png=lambda name: cv2.imread(str(pngs[name]), cv2.IMREAD_UNCHANGED), store=store.mask
    )
    for number in range(rounds):
        order = np.random.default_rng(number).permutation(len(names))
        for kind, read in readers.items():
            started = time.perf_counter()
            for index in order:
                read(names[index])
            times[kind].append((time.perf_counter() - started) / len(names))
    png_bytes = sum(png.stat().st_size for png in pngs.values())
    size = path.stat().st_size
    report = dict(
        masks=len(masks),
        shape=list(next(iter(masks.values())).shape),
        store_bytes=size,
        png_bytes=png_bytes,
        size_ratio=size / png_bytes,
        png_read_ms=1e3 * statistics.median(times["png"]),
        store_read_ms=1e3 * statistics.median(times["store"]),
        read_ratio=statistics.median(times["store"]) / statistics.median(times["png"]),
        write_ratio=store_write / png_write,
    )
    return report if own_bytes is None else report | dict(own_png_bytes=own_bytes, own_size_ratio=size / own_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", type=Path, help="folder of PNG masks, such as those of a dataset")
    parser.add_argument("--page", type=Path, help="documentation page to write the table into")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    sets: dict[str, tuple[dict[str, np.ndarray], int | None]] = {
        "synthetic 96x96": (synthetic_masks(300, size=96), None),
        "synthetic 384x384": (synthetic_masks(100, size=384), None),
    }
    if options.masks is not None:
        own = sum(path.stat().st_size for path in options.masks.rglob("*.png"))
        masks = folder_masks(options.masks)
        height, width = next(iter(masks.values())).shape
        sets[f"{options.masks.absolute().parent.name} {width}x{height}"] = (masks, own)
    reports = {}
    for name, (masks, own_bytes) in sets.items():
        with tempfile.TemporaryDirectory() as folder:
            reports[name] = measure(masks, Path(folder), rounds=options.rounds, own_bytes=own_bytes)
    if options.json:
        print(json.dumps(reports))
        return
    headings = ("masks", "number", "size / PNG by OpenCV", "size / the dataset's own PNG", "read time", "write time")
    rows = [
        (
            name,
            str(report["masks"]),
            f"{report['size_ratio']:.2f}",
            f"{report['own_size_ratio']:.2f}" if "own_size_ratio" in report else "-",
            f"{report['read_ratio']:.2f}",
            f"{report['write_ratio']:.1f}",
        )
        for name, report in reports.items()
    ]
    if options.page is not None:
        lines = ["| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *rows)]
        text = "\n".join(lines)
        options.page.write_text(rewritten(options.page.read_text(), text, tool="tools/bench_store.py"))
    table = Table(title="Store / PNG; below 1 the store is better")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "masks" else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
