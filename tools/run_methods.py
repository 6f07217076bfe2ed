"""Train methods on equal terms, seed by seed: python tools/run_methods.py FOLDER --seeds 0 1 2 [-- TRAIN OPTIONS].

Every seed gets a split, a supervised run and its store of pseudo-masks; the other methods follow with the same split, seed and number of
steps. Seeds of training and split are alike. All runs predict with their last checkpoint, so validation labels choose nothing. Each step
is one command of ``sslseg`` with ``--resume``: what is finished is not repeated, and a killed benchmark goes on. ``tools/benchmark.py``
makes tables of the runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

USUAL = ("supervised", "mean-teacher", "cutmix", "three-stage", "gct", "u2pl", "guidedmix")
METHODS = (*USUAL, "gct-student", "adv-ssl", "s4l", "ael")
console = Console(stderr=True, highlight=False)


class Chain:
    """The commands of one seed, one after another in ``folder``; their output goes to a log."""

    def __init__(self, folder: Path, seed: int, threads: int, tag: str) -> None:
        self.folder, self.seed, self.tag = folder, seed, tag
        self.environment = os.environ | dict(OMP_NUM_THREADS=str(threads))

    def run(self, *arguments: str) -> None:
        console.print(f"seed {self.seed}: sslseg {' '.join(arguments)}", soft_wrap=True)
        with (self.folder / f"seed{self.seed}.log").open("a") as log:
            command = [sys.executable, "-m", "sslseg", *arguments]
            done = subprocess.run(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        if done.returncode:
            raise SystemExit(f"seed {self.seed}: sslseg {arguments[0]} failed; see {log.name}")

    def store(self, run: str) -> None:
        """Score the run's pseudo-masks against the truth of the unlabelled images, which no training has read."""
        self.run("eval", f"{run}/stores/train.h5", "--subset", "unlabeled")

    def all(self, methods: list[str], split: list[str], train: list[str]) -> None:
        seed = str(self.seed)
        self.run("split", "--seed", seed, "--out", f"splits/seed{seed}", *split)
        common = ["--seed", seed, "--resume", *train]
        tag = f"-{self.tag}" if self.tag else ""
        runs = {name: f"runs/{name}{tag}-seed{seed}" for name in (*METHODS, "stage2", "stage3")}
        for method in methods:
            if method == "three-stage":
                first = runs["supervised"]
                self.run("pseudolabel", first, "--subset", "train", "--checkpoint", "last", "--resume")
                self.store(first)
                for stage, source in (("2", first), ("3", runs["stage2"])):
                    own = runs[f"stage{stage}"]
                    arguments = ["--stage", stage, "--checkpoint", "last", "--run-dir", own]
                    self.run("refine", source, *arguments, *common)
                    self.store(own)
            elif method == "gct-student":
                student = ["--keep", "flaw<0.6", "--checkpoint", "last", "--run-dir", runs[method]]
                self.run("refine", runs["gct"], *student, *common)
                self.store(runs[method])
            else:
                self.run(
                    "train", "--method", method, "--split", f"splits/seed{seed}", "--run-dir", runs[method], *common
                )
            if method == "gct":
                self.run("pseudolabel", runs[method], "--subset", "train", "--checkpoint", "last", "--resume")
                self.store(runs[method])
            if method == "guidedmix":
                decoupled = ["--decouple", "--out", f"{runs[method]}/stores/train.h5"]
                self.run(
                    "pseudolabel", runs[method], "--subset", "train", "--checkpoint", "last", "--resume", *decoupled
                )
                self.store(runs[method])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, help="working folder; `sslseg init` there names a dataset, else it is the embedded one"
    )
    parser.add_argument("--ratio", help="labelled share (default: 1/16, unless --count is given)")
    parser.add_argument("--count", help="number of labelled images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(USUAL))
    parser.add_argument(
        "--tag", default="", help="goes into the names of the runs: METHOD-TAG-seedSEED, for an ablation"
    )
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time; they share the cores")
    options, train = parser.parse_known_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    threads = max((os.cpu_count() or 1) // options.jobs, 1)
    chains = [Chain(folder, seed, threads, options.tag) for seed in options.seeds]
    share = ["--count", options.count] if options.count else ["--ratio", options.ratio or "1/16"]
    # The first split draws the embedded dataset, which the others then find.
    chains[0].run("split", "--seed", str(options.seeds[0]), "--out", f"splits/seed{options.seeds[0]}", *share)
    with ThreadPoolExecutor(options.jobs) as pool:
        for future in [
            pool.submit(chain.all, options.methods, share, [word for word in train if word != "--"]) for chain in chains
        ]:
            future.result()
    console.print(f"done: {folder}/runs", soft_wrap=True)


if __name__ == "__main__":
    main()
