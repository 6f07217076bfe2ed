"""Write a benchmark page from runs' own records: python tools/benchmark.py PAGE RUN [RUN ...].

Runs of one method, one split ratio and one number of steps form a row; its seeds give mean and spread. Last and best checkpoint are
both reported, with the evaluation mode. Between the two markers of PAGE everything is written anew; the text around them stays.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from pages import rewritten

from sslseg.run import Run
from sslseg.split import Split


def spread(values: list[float]) -> str:
    """Return mean and sample standard deviation."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def table(runs: list[Run]) -> str:
    """Return the Markdown table of finished runs."""
    rows: dict[tuple[Any, ...], list[tuple[Run, dict[str, Any], Split]]] = defaultdict(list)
    for run in runs:
        record, split = run.read(), Split.load(run.split_folder)
        if record["status"] != "finished":
            raise SystemExit(f"{run.folder} is not finished")
        rows[(split.dataset.name, len(split.labeled), record["method"], record["iters"])].append((run, record, split))
    lines = [
        "| dataset | labelled images | method | steps | seeds (training / split) | mIoU, last | mIoU, best | mode | machine | commit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (dataset, labeled, method, steps), found in sorted(rows.items()):
        records = [record for _, record, _ in found]
        seeds = ", ".join(sorted(f"{record['seed']} / {split.seed}" for _, record, split in found))
        last, best = (spread([record[which]["mIoU"] for record in records]) for which in ("last", "best"))
        modes, devices, commits = (
            ", ".join(sorted({str(value) for value in values}))
            for values in (
                (record["protocol"] for record in records),
                (record["environment"]["device"] for record in records),
                (record["environment"].get("commit", "-") for record in records),
            )
        )
        cells = (dataset, labeled, method, steps, seeds, last, best, modes, devices, commits)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    text = table([Run(folder) for folder in options.runs])
    options.page.write_text(rewritten(options.page.read_text(), text, tool="tools/benchmark.py"))


if __name__ == "__main__":
    main()
