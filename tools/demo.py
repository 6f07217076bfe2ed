"""The whole flow on the built-in synthetic dataset, as a user types it: split, train, pseudolabel, refine, eval, and a closing table.

``make demo`` runs it. Every step is a process of its own, and takes the path that the step before it printed. Of 512 training images 16
are labeled; trainings are short, so their learning rate is higher than the default.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

console = Console(stderr=True, highlight=False)


def step(*arguments: str, cwd: Path) -> str:
    """Run one command of ``sslseg`` and return the path it printed; stop the demo where it fails."""
    console.rule(f"sslseg {' '.join(arguments)}", align="left")
    done = subprocess.run([sys.executable, "-m", "sslseg", *arguments], cwd=cwd, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="working folder; emptied first")
    parser.add_argument("--iterations", default="150", help="iterations of each training (default: 150)")
    options = parser.parse_args()
    folder: Path = options.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    split = step("split", "--ratio", "1/32", cwd=folder)
    length = ("--iterations", options.iterations)
    run = step("train", "--method", "supervised", "--split", split, *length, cwd=folder)
    store = step("pseudolabel", run, "--subset", "train", cwd=folder)
    refined = step("refine", store, cwd=folder)
    better = step("pseudolabel", refined, "--export-png", "pictures", cwd=folder)
    first_scores = step("eval", run, cwd=folder)
    model_scores = step("eval", refined, "--figures", "figures", cwd=folder)
    store_scores = step("eval", store, "--subset", "unlabeled", cwd=folder)
    better_scores = step("eval", better, cwd=folder)
    table = Table(title=f"make demo: {refined}, {time.monotonic() - started:.0f} s")
    for heading in ("what was scored", "images", "mIoU", "pixel accuracy", "mode"):
        table.add_column(heading, justify="left" if heading in ("what was scored", "mode") else "right")
    rows = {
        "supervised, on val": first_scores,
        "refined (stage 2), on val": model_scores,
        "its pseudo-masks, against the hidden truth": better_scores,
        "those of the supervised model": store_scores,
    }
    for what, path in rows.items():
        scores = json.loads((folder / path).read_text())
        table.add_row(what, str(scores["images"]), f"{scores['mIoU']:.2f}", f"{scores['aAcc']:.2f}", scores["protocol"])
    console.print(table)
    console.print(
        f"Pictures: {folder}/figures (image, truth, prediction, error) and {folder}/pictures/overlays",
        markup=False,
    )


if __name__ == "__main__":
    main()
