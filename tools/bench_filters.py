"""Compare HDF5's filters on masks: size, time to write and time to read.

    python tools/bench_filters.py [--masks DIR] [--json]

For each filter h5py writes and reads a plain file with one chunk per mask. Sizes and times are relative to the filter
that stores use. Zstandard and Blosc need a package that sslseg does not depend on: ``pip install hdf5plugin``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from bench_store import folder_masks, synthetic_masks
from rich.console import Console
from rich.table import Table

from sslseg.store.format import LABEL_MAP, LEVELS, create_file

CHOSEN = f"gzip {LEVELS[LABEL_MAP.encoding]}"


def choices() -> dict[str, Any]:
    """Return h5py's arguments for each filter."""
    found: dict[str, Any] = {
        f"gzip {level}": dict(compression="gzip", compression_opts=level) for level in (4, 6, 8, 9)
    }
    try:
        import hdf5plugin
    except ImportError:
        return found
    found |= {f"zstd {level}": hdf5plugin.Zstd(level) for level in (3, 9, 19)}
    found |= {f"blosc2 {name}": hdf5plugin.Blosc2(name, 9, hdf5plugin.Blosc2.NOFILTER) for name in ("zstd", "lz4hc")}
    found["blosc2 zstd bits"] = hdf5plugin.Blosc2("zstd", 9, hdf5plugin.Blosc2.BITSHUFFLE)
    found["bitshuffle zstd"] = hdf5plugin.Bitshuffle(cname="zstd")
    return found


def compare(masks: dict[str, np.ndarray], folder: Path, *, rounds: int) -> dict[str, dict[str, float]]:
    """Return bytes per mask, and milliseconds to write and to read one, by filter."""
    report: dict[str, dict[str, float]] = {}
    for filter_name, arguments in choices().items():
        path = folder / f"{filter_name}.h5"
        started = time.perf_counter()
        with create_file(path) as file:
            for name, mask in masks.items():
                file.create_dataset(name, data=mask, chunks=mask.shape, **arguments)
        seconds = time.perf_counter() - started
        report[filter_name] = dict(bytes=path.stat().st_size / len(masks), write_ms=1e3 * seconds / len(masks))
    times: dict[str, list[float]] = {name: [] for name in report}
    for _ in range(rounds):
        for filter_name in report:
            with h5py.File(folder / f"{filter_name}.h5") as file:
                started = time.perf_counter()
                for name in masks:
                    file[name][()]
                times[filter_name].append((time.perf_counter() - started) / len(masks))
    for filter_name, found in report.items():
        found["read_ms"] = 1e3 * statistics.median(times[filter_name])
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", type=Path, help="folder of PNG masks instead of synthetic ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    if options.masks is not None:
        sets = {str(options.masks): folder_masks(options.masks)}
    else:
        sets = {"synthetic 96x96": synthetic_masks(300, size=96), "synthetic 384x384": synthetic_masks(100, size=384)}
    reports = {}
    for name, masks in sets.items():
        with tempfile.TemporaryDirectory() as folder:
            reports[name] = compare(masks, Path(folder), rounds=options.rounds)
    if options.json:
        print(json.dumps(reports))
        return
    for name, report in reports.items():
        table = Table("filter", "bytes", "writing", "reading", title=f"{name}, relative to {CHOSEN}")
        for filter_name, found in report.items():
            ratios = (found[key] / report[CHOSEN][key] for key in ("bytes", "write_ms", "read_ms"))
            table.add_row(filter_name, *(f"{ratio:.2f}" for ratio in ratios))
        Console().print(table)


if __name__ == "__main__":
    main()
