"""Write a benchmark page from runs' own records: python tools/benchmark.py PAGE RUN [RUN ...].

Runs of equal settings form a row; its seeds give mean and spread (the sample standard deviation). Last and best checkpoint are both
reported, with the evaluation mode; the gain over the supervised run of the same network, split and seed; and the quality of the
pseudo-masks where it was measured; a second table shows misclassification detection by stored scores. Everything between the two markers
of PAGE is replaced; the text around them stays.
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

from sslseg.artifacts.run import Run
from sslseg.config.files import load
from sslseg.splits.split import Split

BASELINE = "Supervised"
SHOWN = ("schedule.iterations", "method.stage")  # settings that have a column, or a part of the name


def spread(values: list[float]) -> str:
    """Return mean and sample standard deviation."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def label(record: dict[str, Any]) -> str:
    """Return the name of a row: the method, its stage, and the settings that were changed."""
    stage = record.get("stage")
    changed = [
        f"{key.removeprefix('method.')}={value}"
        for key, value in sorted(record.get("settings", {}).items())
        if key not in SHOWN
    ]
    return record["method"] + (f", stage {stage}" if stage else "") + (f" ({', '.join(changed)})" if changed else "")


def pseudo_masks(run: Run) -> dict[str, Any] | None:
    """Return the scores of the run's pseudo-masks of unlabeled images, where `sslseg eval` has measured them."""
    found = sorted(run.stores.glob("*-eval-unlabeled.json"))
    return json.loads(found[-1].read_text()) if found else None


Row = list[tuple[Run, dict[str, Any], Split]]
BUILT_IN = ("confidence", "entropy")  # scores of every store


def detection(rows: dict[tuple[Any, ...], Row]) -> list[str]:
    """Return the Markdown table of misclassification detection: stores with further masks, or scores of a method's own."""
    measured: dict[str, list[dict[str, Any]]] = {}
    for (_, _, _, _, name, *_), found in sorted(rows.items()):
        stored = [scores for run, _, _ in found if (scores := pseudo_masks(run)) is not None]
        # Older records of `sslseg eval` lack what was not measured then.
        if any(
            scores.get("other_masks") or set(scores.get("error_detection", {})) - set(BUILT_IN) for scores in stored
        ):
            measured[name] = stored
    if not measured:
        return []
    own = (
        kind for stored in measured.values() for kind in stored[0].get("error_detection", {}) if kind not in BUILT_IN
    )
    kinds = [*dict.fromkeys(own), *BUILT_IN]
    headings = ["method", "mIoU of pseudo-masks", "of others in the store"]
    headings += [f"AUROC of {'1 - ' if kind == 'confidence' else ''}{kind} (%)" for kind in kinds]
    lines = ["", "| " + " | ".join(headings) + " |", "| " + " | ".join(["---"] * len(headings)) + " |"]
    for name, stored in measured.items():
        others, known = ([scores.get(key, {}) for scores in stored] for key in ("other_masks", "error_detection"))
        beside = [f"{kind}: {spread([scores[kind]['mIoU'] for scores in others])}" for kind in sorted(others[0])]
        values = [
            spread([100 * scores[kind]["auroc"] for scores in known]) if kind in known[0] else "-" for kind in kinds
        ]
        cells = (name, spread([scores["mIoU"] for scores in stored]), ", ".join(beside) or "-", *values)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def joined(values: Iterable[Any]) -> str:
    return ", ".join(sorted(set(map(str, values))))


def table(runs: list[Run]) -> str:
    """Return the Markdown table of finished runs; runs of other settings never share a row."""
    rows: dict[tuple[Any, ...], Row] = defaultdict(list)
    for run in runs:
        record, split = run.read(), Split.load(run.split_folder)
        if record["status"] != "finished":
            raise SystemExit(f"{run.folder} is not finished")
        config = load(run.config_path)
        settings = [str(config.get(key)) for key in ("model", "method", "optimizer", "schedule", "data", "views")]
        head = config.model.decode_head.type.removesuffix("Head")
        key = (
            split.dataset.name,
            len(split.labeled),
            record["iterations"],
            order(record),
            label(record),
            head,
            *settings,
        )
        rows[key].append((run, record, split))
    headings = (
        "dataset, labeled images, method, decode head, iterations, seeds (training / split), mIoU last, mIoU best"
    )
    headings += ", gain over supervised by seed (last), mIoU of pseudo-masks, mode, machine, commit"
    lines = ["| " + headings.replace(", ", " | ") + " |", "|---" * len(headings.split(", ")) + "|"]
    for (dataset, labeled, iterations, _, name, head, network, *_), found in sorted(rows.items()):
        records = [record for _, record, _ in found]
        last, best = (spread([record[which]["mIoU"] for record in records]) for which in ("last", "best"))
        pairs = [(record["last"]["mIoU"], baseline(rows, record, split, network)) for _, record, split in found]
        gains = [own - base for own, base in pairs if base is not None]
        stored = [scores["mIoU"] for run, _, _ in found if (scores := pseudo_masks(run)) is not None]
        environments = [record["environment"] for record in records]
        cells = (
            dataset,
            labeled,
            name,
            head,
            iterations,
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
    return "\n".join(lines + detection(rows))


def baseline(rows: dict[tuple[Any, ...], Row], record: dict[str, Any], split: Split, network: str) -> float | None:
    """Return the last mIoU of the supervised run of the same network, split, seed and iterations, if it is in the table."""
    for key, entries in rows.items():
        for _, other, theirs in entries:
            same = theirs.sha256 == split.sha256 and all(other[name] == record[name] for name in ("seed", "iterations"))
            if same and other["method"] == BASELINE and network in key:
                return other["last"]["mIoU"]
    return None


def order(record: dict[str, Any]) -> tuple[bool, str, int]:
    """Sort the baseline first, then by name and stage."""
    return record["method"] != BASELINE, record["method"], record.get("stage") or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    text = table([Run(folder) for folder in options.runs])
    options.page.write_text(rewritten(options.page.read_text(), text, tool="tools/benchmark.py"))


if __name__ == "__main__":
    main()
