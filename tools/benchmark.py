"""Write a benchmark page from runs' own records: python tools/benchmark.py PAGE RUN [RUN ...].

Runs of equal settings form a row; its seeds give mean and spread (the sample standard deviation). Last and best checkpoint are both
reported, with the evaluation mode; the gain over the supervised run of the same split and seed; and the quality of the pseudo-masks
where it was measured. Between the two markers of PAGE everything is written anew; the text around them stays.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pages import rewritten

from sslseg.config import load
from sslseg.run import Run
from sslseg.split import Split

BASELINE = "Supervised"


def spread(values: list[float]) -> str:
    """Return mean and sample standard deviation."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def label(record: dict[str, Any]) -> str:
    """Return what a row is called: the method, and the stage of three-stage self-training."""
    stage = record.get("stage")
    return record["method"] + (f", stage {stage}" if stage else "")


def pseudo_masks(run: Run) -> float | None:
    """Return the mIoU of the run's pseudo-masks of unlabelled images, where `sslseg eval` has measured it."""
    found = sorted(run.stores.glob("*-eval-unlabeled.json"))
    return json.loads(found[-1].read_text())["mIoU"] if found else None


def joined(values: Iterable[Any]) -> str:
    return ", ".join(sorted(set(map(str, values))))


def table(runs: list[Run]) -> str:
    """Return the Markdown table of finished runs; runs of other settings never share a row."""
    rows: dict[tuple[Any, ...], list[tuple[Run, dict[str, Any], Split]]] = defaultdict(list)
    for run in runs:
        record, split = run.read(), Split.load(run.split_folder)
        if record["status"] != "finished":
            raise SystemExit(f"{run.folder} is not finished")
        config = load(run.config_path)
        settings = [str(config.get(key)) for key in ("model", "method", "optimizer", "schedule", "data", "views")]
        key = (split.dataset.name, len(split.labeled), record["iters"], order(record), label(record), *settings)
        rows[key].append((run, record, split))
    headings = "dataset, labelled images, method, steps, seeds (training / split), mIoU last, mIoU best"
    headings += ", gain over supervised by seed (last), mIoU of pseudo-masks, mode, machine, commit"
    lines = ["| " + headings.replace(", ", " | ") + " |", "|---" * len(headings.split(", ")) + "|"]
    for (dataset, labeled, steps, _, name, *_), found in sorted(rows.items()):
        records = [record for _, record, _ in found]
        last, best = (spread([record[which]["mIoU"] for record in records]) for which in ("last", "best"))
        pairs = [(record["last"]["mIoU"], baseline(rows, record, split)) for _, record, split in found]
        gains = [own - base for own, base in pairs if base is not None]
        stored = [value for run, _, _ in found if (value := pseudo_masks(run)) is not None]
        environments = [record["environment"] for record in records]
        cells = (
            dataset,
            labeled,
            name,
            steps,
            joined(f"{record['seed']} / {split.seed}" for _, record, split in found),
            last,
            best,
            spread(gains) if gains and records[0]["method"] != BASELINE else "-",
            spread(stored) if stored else "-",
            joined(record["protocol"] for record in records),
            joined(environment["device"] for environment in environments),
            joined(environment.get("commit", "-") for environment in environments),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def baseline(
    rows: dict[tuple[Any, ...], list[tuple[Run, dict[str, Any], Split]]], record: dict[str, Any], split: Split
) -> float | None:
    """Return the last mIoU of the supervised run of the same split, seed and number of steps, if it is in the table."""
    for _, other, theirs in (entry for entries in rows.values() for entry in entries):
        same = theirs.sha256 == split.sha256 and all(other[key] == record[key] for key in ("seed", "iters"))
        if same and other["method"] == BASELINE:
            return other["last"]["mIoU"]
    return None


def order(record: dict[str, Any]) -> tuple[int, int]:
    """Sort methods as the papers' tables do: the baselines first."""
    known = (BASELINE, "MeanTeacher", "CutMix")
    method = record["method"]
    return known.index(method) if method in known else len(known), record.get("stage", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    text = table([Run(folder) for folder in options.runs])
    options.page.write_text(rewritten(options.page.read_text(), text, tool="tools/benchmark.py"))


if __name__ == "__main__":
    main()
