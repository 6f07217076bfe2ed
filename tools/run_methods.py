"""Train methods on equal terms, seed by seed: python tools/run_methods.py FOLDER --seeds 0 1 2 [-- TRAIN OPTIONS].

Every method runs the pipeline that it declares (``sslseg methods NAME``) on the same splits, seeds and number of iterations; a training that
several pipelines share is done once. Seeds of training and split are alike. Every run predicts with its last checkpoint, so validation labels
choose nothing. ``--ends`` adds the two ends that a benchmark needs: supervised training with all labels, and on few labels with the doubled
batch, as many images as a semi-supervised method sees. Each step is one command of ``sslseg`` with ``--resume``: what is finished is not repeated, and a killed benchmark goes on.
``tools/benchmark.py`` makes tables of the runs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline import steps
from rich.console import Console

from sslseg.catalog import methods

console = Console(stderr=True, highlight=False, soft_wrap=True)
BASELINE = "supervised"
LAST = ["--checkpoint", "last"]


class Chain:
    """The commands of one seed, one after another in ``folder``; their output goes to a log."""

    def __init__(self, folder: Path, seed: int, threads: int, tag: str) -> None:
        self.folder, self.seed, self.tag = folder, seed, tag
        self.environment = os.environ | dict(OMP_NUM_THREADS=str(threads))

    def run(self, *arguments: str) -> None:
        console.print(f"seed {self.seed}: sslseg {shlex.join(arguments)}")
        with (self.folder / f"seed{self.seed}.log").open("a") as log:
            command = [sys.executable, "-m", "sslseg", *arguments]
            done = subprocess.run(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        if done.returncode:
            raise SystemExit(f"seed {self.seed}: sslseg {arguments[0]} failed; see {log.name}")

    def split(self, fraction: list[str], name: str = "") -> None:
        self.run("split", "--seed", str(self.seed), "--out", f"splits/{name}seed{self.seed}", *fraction)

    def ends(self, train: list[str], batch: int) -> None:
        """Train the baseline with all labels, and with the doubled batch."""
        self.split(["--ratio", "1"], name="all-")
        common = ["--method", BASELINE, "--seed", str(self.seed), "--resume", *train]
        for name, split, more in (
            (f"{BASELINE}-all", f"splits/all-seed{self.seed}", []),
            (f"{BASELINE}-double", f"splits/seed{self.seed}", ["--set", f"data.batch_size={2 * batch}"]),
        ):
            self.run("train", "--split", split, "--run-dir", f"runs/{name}-seed{self.seed}", *common, *more)

    def all(self, names: list[str], train: list[str]) -> None:
        """Run the pipelines of the methods; pseudo-masks are scored on unlabeled images, whose labels no training has read."""
        end = f"{f'-{self.tag}' if self.tag else ''}-seed{self.seed}"
        common = ["--seed", str(self.seed), *train]
        for name in names:

            def run_of(trained: str, number: int, name: str = name) -> str:
                return f"runs/{trained}{end}" if number == 1 else f"runs/{name}-stage{number}{end}"

            for step in steps(name, run_of):
                words, store = step.words(f"splits/seed{self.seed}"), f"{step.run}/stores/train.h5"
                if step.command == "train":
                    self.run(*words, *common)
                elif step.command == "refine":
                    self.run(*words, *common, *LAST)
                elif step.command == "pseudolabel":
                    self.run(*words, "--subset", "train", "--out", store, *LAST)
                if step.command in ("pseudolabel", "refine"):
                    self.run("eval", store, "--subset", "unlabeled")


def main() -> None:
    known = [method.name for method in methods()]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, help="working folder; `sslseg init` there names a dataset, else it is the synthetic one"
    )
    parser.add_argument("--ratio", help="fraction of training images that count as labeled (default: 1/16)")
    parser.add_argument("--count", help="number of labeled images instead")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=known, default=known)
    parser.add_argument("--tag", default="", help="goes into the names of the runs, for an ablation")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time; they share the cores")
    parser.add_argument(
        "--ends", action="store_true", help="train the baseline with all labels, and with the doubled batch"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="labeled images per iteration, of every method")
    options, words = parser.parse_known_args()
    train = ["--batch-size", str(options.batch_size), *(word for word in words if word != "--")]
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    threads = max((os.cpu_count() or 1) // options.jobs, 1)
    chains = [Chain(folder, seed, threads, options.tag) for seed in options.seeds]
    fraction = ["--count", options.count] if options.count else ["--ratio", options.ratio or "1/16"]
    # One after another: the first makes the synthetic dataset, which the others then find.
    for chain in chains:
        chain.split(fraction)
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(chain.all, options.methods, train) for chain in chains]
        futures += [pool.submit(chain.ends, train, options.batch_size) for chain in chains if options.ends]
        for future in futures:
            future.result()
    console.print(f"done: {folder}/runs")


if __name__ == "__main__":
    main()
