"""Write a benchmark page from runs' own records: python tools/benchmark.py PAGE RUN [RUN ...].

Runs of equal settings form a row; its seeds give mean and spread (the sample standard deviation). Last and best checkpoint are both
reported, with the evaluation mode; the gain over the supervised run of the same network, split and seed; and the quality of the
pseudo-masks where it was measured; a second table shows misclassification detection by stored scores. Everything between the two markers
of PAGE is replaced; the text around them stays.

A benchmark can only compare methods where it has headroom: what the supervised run gains when all training images are labeled
(``tools/run_methods.py --ends``). The page says how much there is, warns where it is small, and gives each gain as a fraction of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import rewritten

from sslseg.artifacts.run import Run
from sslseg.config.files import load
from sslseg.splits.split import Split

BASELINE = "Supervised"
SMALL_HEADROOM = 6  # mIoU
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


@dataclass(frozen=True)
class Entry:
    """A finished run.

    Attributes:
        config: the parts of its config that make a row, as text.
    """

    run: Run
    record: dict[str, Any]
    split: Split
    network: str
    config: dict[str, str]

    @property
    def row(self) -> tuple[Any, ...]:
        """What runs of one row have in common, in the order of the table."""
        record = self.record
        order = record["method"] != BASELINE, record["method"], record.get("stage") or 0
        place = self.split.dataset.name, len(self.split.labeled), record["iterations"]
        return *place, order, label(record), self.network, *self.config.values()

    @property
    def last(self) -> float:
        return self.record["last"]["mIoU"]

    @property
    def seconds(self) -> float:
        """Return the time of its training, without validation."""
        paces = [(one["iteration"], one["seconds_per_iteration"]) for one in self.run.metrics() if "lr" in one]
        starts = [0, *(iteration for iteration, _ in paces)]
        return sum(pace * (end - start) for start, (end, pace) in zip(starts, paces, strict=False))


def entry(run: Run) -> Entry:
    """Read a run; stop where it is not finished."""
    record = run.read()
    if record["status"] != "finished":
        raise SystemExit(f"{run.folder} is not finished")
    config = load(run.config_path)
    keys = ("model", "method", "optimizer", "paramwise", "schedule", "data", "views")
    parts = {key: str(config.get(key)) for key in keys}
    network = f"{config.model.backbone.type}, {config.model.decode_head.type.removesuffix('Head')}"
    return Entry(run, record, Split.load(run.split_folder), network, parts)


Rows = dict[tuple[Any, ...], list[Entry]]
BUILT_IN = ("confidence", "entropy")  # scores of every store


def detection(rows: Rows) -> list[str]:
    """Return the Markdown table of misclassification detection: stores with further masks, or scores of a method's own."""
    measured: dict[str, list[dict[str, Any]]] = {}
    for (_, _, _, _, name, *_), found in sorted(rows.items()):
        stored = [scores for one in found if (scores := pseudo_masks(one.run)) is not None]
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


HEADINGS = (
    "dataset",
    "labeled images",
    "method",
    "network",
    "iterations",
    "seeds (training / split)",
    "mIoU last",
    "mIoU best",
    "gain over supervised by seed (last)",
    "of the headroom (%)",
    "time / supervised",
    "mIoU of pseudo-masks",
    "mode",
    "machine",
    "commit",
)


def table(runs: list[Run]) -> str:
    """Return the Markdown table of finished runs; runs of other settings never share a row."""
    rows: Rows = defaultdict(list)
    for run in runs:
        found = entry(run)
        rows[found.row].append(found)
    every = [one for entries in rows.values() for one in entries]
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    for (dataset, labeled, iterations, _, name, network, *_), found in sorted(rows.items()):
        few = [(one, base) for one in found if (base := baseline(one, every)) is not None and base is not one]
        gains = [one.last - base.last for one, base in few]
        rooms = [room for one, _ in few if (room := headroom(one, every)) is not None]
        stored = [scores["mIoU"] for one in found if (scores := pseudo_masks(one.run)) is not None]
        environments = [one.record["environment"] for one in found]
        times = [one.seconds / base.seconds for one, base in few if base.seconds]
        cells = (
            dataset,
            labeled,
            name,
            network,
            iterations,
            joined(f"{one.record['seed']} / {one.split.seed}" for one in found),
            *(spread([one.record[which]["mIoU"] for one in found]) for which in ("last", "best")),
            spread(gains) if gains else "-",
            f"{100 * statistics.mean(gains) / statistics.mean(rooms):.0f}" if rooms and min(rooms) > 0 else "-",
            f"{statistics.mean(times):.2f}" if times else "-",
            spread(stored) if stored else "-",
            joined(one.record["protocol"] for one in found),
            joined(environment["device"] for environment in environments),
            joined(environment.get("commit", "-") for environment in environments),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, *detection(rows), *headroom_lines(every)])


def baseline(one: Entry, every: list[Entry]) -> Entry | None:
    """Return the supervised run of the same network, split, seed and iterations; with the fewest settings of its own."""
    found = [
        other
        for other in every
        if other.record["method"] == BASELINE
        and other.split.sha256 == one.split.sha256
        and other.config["model"] == one.config["model"]
        and all(other.record[name] == one.record[name] for name in ("seed", "iterations"))
    ]
    return min(found, key=lambda other: len(other.record.get("settings", {})), default=None)


def headroom(one: Entry, every: list[Entry]) -> float | None:
    """Return what the baseline of a run gains with all labels, in mIoU; None where that was not trained."""
    base = baseline(one, every)
    if base is None:
        return None
    full = [
        other.last
        for other in every
        if all(other.config[key] == base.config[key] for key in ("model", "optimizer", "paramwise", "data"))
        and len(other.split.labeled) > len(base.split.labeled)
        and other.split.dataset.name == base.split.dataset.name
        and all(other.record[name] == base.record[name] for name in ("method", "seed", "iterations", "settings"))
    ]
    return max(full) - base.last if full else None


def headroom_lines(every: list[Entry]) -> list[str]:
    """Return a sentence on the headroom of each dataset, number of labels and network, and a warning where it is small."""
    rooms: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for one in every:
        room = headroom(one, every)
        if room is not None and baseline(one, every) is one:
            rooms[one.row].append(room)
    lines = []
    for (dataset, labeled, iterations, _, _, network, *_), values in sorted(rooms.items()):
        text = f"Headroom of {dataset} at {labeled} labels, {iterations} iterations, {network}: {spread(values)} mIoU."
        if statistics.mean(values) < SMALL_HEADROOM:
            text += f" This is less than {SMALL_HEADROOM}: differences between methods mean little here."
        lines += ["", text]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    text = table([Run(folder) for folder in options.runs])
    options.page.write_text(rewritten(options.page.read_text(), text, tool="tools/benchmark.py"))


if __name__ == "__main__":
    main()
