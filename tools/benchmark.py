"""Write a benchmark page from runs' own records: python tools/benchmark.py PAGE RUN [RUN ...].

Runs of equal settings form a row; its seeds give mean and spread (the sample standard deviation). Last and best checkpoint are both
reported, with the evaluation mode; the gain over the supervised run of the same network, split and seed; and the quality of the
pseudo-masks where it was measured, in a table of its own also how well stored scores know their errors. Between the two markers of
PAGE everything is written anew; the text around them stays.
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
TOLD = ("schedule.iters", "method.stage")  # settings that a row shows anyway
RANKED = dict(flaw="flaw", confidence="1 - confidence", entropy="entropy")


def spread(values: list[float]) -> str:
    """Return mean and sample standard deviation."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def label(record: dict[str, Any]) -> str:
    """Return what a row is called: the method, the stage of three-stage self-training, and the settings that were changed."""
    stage = record.get("stage")
    changed = [
        f"{key.removeprefix('method.')}={value}"
        for key, value in sorted(record.get("settings", {}).items())
        if key not in TOLD
    ]
    return record["method"] + (f", stage {stage}" if stage else "") + (f" ({', '.join(changed)})" if changed else "")


def pseudo_masks(run: Run) -> dict[str, Any] | None:
    """Return the scores of the run's pseudo-masks of unlabelled images, where `sslseg eval` has measured them."""
    found = sorted(run.stores.glob("*-eval-unlabeled.json"))
    return json.loads(found[-1].read_text()) if found else None


Row = list[tuple[Run, dict[str, Any], Split]]


def errors(rows: dict[tuple[Any, ...], Row]) -> list[str]:
    """Return the Markdown table of stores that hold more than masks and confidence: other masks, or flaw maps."""
    lines = []
    for (_, _, _, _, name, *_), found in sorted(rows.items()):
        stored = [scores for run, _, _ in found if (scores := pseudo_masks(run)) is not None]
        # What older records of `sslseg eval` lack was not measured.
        others, known = ([scores.get(key, {}) for scores in stored] for key in ("other_masks", "error_detection"))
        if not any(others) and not any("flaw" in scores for scores in known):
            continue
        beside = [f"{kind}: {spread([scores[kind]['mIoU'] for scores in others])}" for kind in sorted(others[0])]
        ranks = [
            spread([100 * scores[kind]["auroc"] for scores in known]) if kind in known[0] else "-" for kind in RANKED
        ]
        cells = (name, spread([scores["mIoU"] for scores in stored]), ", ".join(beside) or "-", *ranks)
        lines.append("| " + " | ".join(cells) + " |")
    if not lines:
        return []
    headings = ["method", "mIoU of pseudo-masks", "of others in the store"]
    headings += [f"AUROC of {kind} (%)" for kind in RANKED.values()]
    return ["", "| " + " | ".join(headings) + " |", "| " + " | ".join(["---"] * len(headings)) + " |", *lines]


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
        key = (split.dataset.name, len(split.labeled), record["iters"], order(record), label(record), head, *settings)
        rows[key].append((run, record, split))
    headings = "dataset, labelled images, method, decode head, steps, seeds (training / split), mIoU last, mIoU best"
    headings += ", gain over supervised by seed (last), mIoU of pseudo-masks, mode, machine, commit"
    lines = ["| " + headings.replace(", ", " | ") + " |", "|---" * len(headings.split(", ")) + "|"]
    for (dataset, labeled, steps, _, name, head, network, *_), found in sorted(rows.items()):
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
    return "\n".join(lines + errors(rows))


def baseline(rows: dict[tuple[Any, ...], Row], record: dict[str, Any], split: Split, network: str) -> float | None:
    """Return the last mIoU of the supervised run of the same network, split, seed and steps, if it is in the table."""
    for key, entries in rows.items():
        for _, other, theirs in entries:
            same = theirs.sha256 == split.sha256 and all(other[name] == record[name] for name in ("seed", "iters"))
            if same and other["method"] == BASELINE and network in key:
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
