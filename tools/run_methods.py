"""Train methods on equal terms, seed by seed: python tools/run_methods.py FOLDER --seeds 0 1 2 [-- TRAIN OPTIONS].

Every method runs the pipeline that it declares (``sslseg methods NAME``) on the same splits, seeds and number of iterations; a command that
several pipelines share is run once. Seeds of training and split are alike. Every run predicts with its last checkpoint, so validation labels
choose nothing. ``--ends`` adds the two ends that a benchmark needs, right after the supervised run: supervised training with all labels, and on
few labels with the doubled batch, as many images as a semi-supervised method sees.

``--tag`` names the runs of an ablation. Its options go to every training of a pipeline, or with ``--stage`` to those with these numbers; then the
trainings before them are the runs without the tag, which must be finished, and later ones learn from the tagged ones with nothing changed.

A seed is finished before the next one begins. Each step is one command of ``sslseg`` with ``--resume``: what is finished is not repeated, and a
killed benchmark goes on. Where a command fails, the other methods go on; what failed is printed at the end.
``tools/benchmark.py`` makes tables of the runs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pipeline import steps
from rich.console import Console

from sslseg.artifacts.run import Run
from sslseg.catalog import methods
from sslseg.config.auto import recommendation
from sslseg.errors import UserError
from sslseg.plugins import AUTO

console = Console(stderr=True, highlight=False, soft_wrap=True)
BASELINE = "supervised"
ALL, DOUBLE = f"{BASELINE}-all", f"{BASELINE}-double"
LAST = ["--checkpoint", "last"]


class CommandError(Exception):
    """A command ended with an error."""


class Chain:
    """The commands of one seed in ``folder``. Whichever method needs one first runs it; others that need it wait for it.

    Args:
        stages: which trainings of a pipeline the options are for; empty: all.
        train: options of ``sslseg train`` and ``refine``.
    """

    def __init__(
        self, folder: Path, seed: int, *, threads: int, batch: int, tag: str, stages: Sequence[int], train: list[str]
    ) -> None:
        self.folder, self.seed, self.batch, self.tag, self.stages, self.train = folder, seed, batch, tag, stages, train
        self.environment = os.environ | dict(OMP_NUM_THREADS=str(threads))
        self.begun: dict[tuple[str, ...], Future[None]] = {}
        self.lock = threading.Lock()

    def run(self, *arguments: str) -> None:
        console.print(f"seed {self.seed}: sslseg {shlex.join(arguments)}")
        runs = [Path(word).parts[1] for word in arguments if word.startswith("runs/")]
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{runs[-1] if runs else f'split-seed{self.seed}'}.log").open("a") as log:
            command = [sys.executable, "-m", "sslseg", *arguments]
            done = subprocess.run(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        if done.returncode:
            raise CommandError(f"sslseg {shlex.join(arguments)} ended with {done.returncode}; see {log.name}")

    def once(self, *arguments: str) -> None:
        """Run a command, or wait for whoever does."""
        with self.lock:
            mine = arguments not in self.begun
            future = self.begun.setdefault(arguments, Future())
        if mine:
            try:
                self.run(*arguments)
                future.set_result(None)
            except CommandError as failed:
                future.set_exception(failed)
        future.result()

    def split(self, fraction: list[str], name: str = "") -> None:
        self.once("split", "--seed", str(self.seed), "--out", f"splits/{name}seed{self.seed}", *fraction)

    def method(self, name: str) -> None:
        """Run a method's pipeline; pseudo-masks are scored on unlabeled images, whose labels no training has read."""
        first = min(self.stages, default=1)

        def run_of(trained: str, number: int) -> str:
            return f"runs/{trained if number == 1 else f'{name}-stage{number}'}{self._end(tagged=number >= first)}"

        for step in steps(name, run_of):
            given = step.training in self.stages or not self.stages
            words, store = step.words(f"splits/seed{self.seed}"), f"{step.run}/stores/train.h5"
            if step.command in ("train", "refine"):
                if step.training < first:
                    self._check_finished(step.run)
                    continue
                batch = ["--batch-size", str(self.batch)] if step.command == "train" else []
                last = LAST if step.command == "refine" else []
                self.once(*words, "--seed", str(self.seed), *batch, *(self.train if given else []), *last)
            elif step.command == "pseudolabel":
                # Of labeled and unlabeled images, so that all methods share the store of a run.
                own = [word for word in words if word not in ("--subset", "train")]
                self.once(*own, "--subset", "train", "--out", store, *LAST)
            if step.command in ("pseudolabel", "refine"):
                self.once("eval", store, "--subset", "unlabeled")

    def all_labels(self) -> None:
        """Train the baseline with all labels."""
        self.split(["--ratio", "1"], name="all-")
        self._baseline(ALL, f"splits/all-seed{self.seed}")

    def doubled_batch(self) -> None:
        """Train the baseline with as many images per iteration as a semi-supervised method sees."""
        more = ["--set", f"data.batch_size={2 * self.batch}"]
        self._baseline(DOUBLE, f"splits/seed{self.seed}", *more)

    def _baseline(self, name: str, split: str, *more: str) -> None:
        place = ["--split", split, "--run-dir", f"runs/{name}{self._end(tagged=True)}"]
        common = ["--method", BASELINE, "--seed", str(self.seed), "--resume", "--batch-size", str(self.batch)]
        self.once("train", *place, *common, *self.train, *more)

    def _end(self, *, tagged: bool) -> str:
        return f"{f'-{self.tag}' if self.tag and tagged else ''}-seed{self.seed}"

    def _check_finished(self, run: str) -> None:
        try:
            status = Run(self.folder / run).read()["status"]
        except UserError:
            status = "not there"
        if status != "finished":
            raise CommandError(
                f"{run} is {status}, but the stages of --stage begin with it; first run this without --tag"
            )


def jobs(chains: Sequence[Chain], names: Sequence[str], *, ends: bool) -> list[tuple[str, Callable[[], None]]]:
    """Return what is to be done, in this order: seed by seed the baseline, the two ends, the other methods."""
    found: list[tuple[str, Callable[[], None]]] = []
    for chain in chains:
        work: dict[str, Callable[[], None]] = {}
        if BASELINE in names:
            work[BASELINE] = partial(chain.method, BASELINE)
        if ends:
            work |= {ALL: chain.all_labels, DOUBLE: chain.doubled_batch}
        work |= {name: partial(chain.method, name) for name in names if name != BASELINE}
        found += [(f"seed {chain.seed}, {name}", one) for name, one in work.items()]
    return found


def attempt(name: str, work: Callable[[], None]) -> str | None:
    """Do one job; return what failed, if anything did."""
    try:
        work()
    except CommandError as failed:
        console.print(f"{name} FAILED: {failed}")
        return f"{name}: {failed}"
    return None


def main() -> None:
    known = [method.name for method in methods()]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, help="working folder; `sslseg init` there names a dataset, else it is the synthetic one"
    )
    parser.add_argument("--ratio", help="fraction of training images that count as labeled (default: 1/16)")
    parser.add_argument("--count", help="number of labeled images instead")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=[AUTO, *known],
        default=known,
        help="auto is the recommended one, and its runs bear that one's name",
    )
    parser.add_argument("--tag", default="", help="goes into the names of the runs, for an ablation")
    parser.add_argument(
        "--stage",
        type=int,
        nargs="+",
        default=[],
        help="with --tag: which trainings of a pipeline, counted from 1, the options are for (default: all)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="commands at a time; they share the cores")
    parser.add_argument(
        "--ends", action="store_true", help="train the baseline with all labels, and with the doubled batch"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="labeled images per iteration, of every method")
    options, words = parser.parse_known_args()
    if options.stage and not options.tag:
        parser.error("--stage needs --tag, for the names of the runs")
    train = [word for word in words if word != "--"]
    names = list(dict.fromkeys(recommendation().recommended if name == AUTO else name for name in options.methods))
    if AUTO in options.methods:
        console.print(f"auto: {recommendation().recommended}")
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    threads = max((os.cpu_count() or 1) // options.jobs, 1)
    settings = dict(threads=threads, batch=options.batch_size, tag=options.tag, stages=options.stage, train=train)
    chains = [Chain(folder, seed, **settings) for seed in options.seeds]
    fraction = ["--count", options.count] if options.count else ["--ratio", options.ratio or "1/16"]
    try:
        # One after another: the first makes the synthetic dataset, which the others then find.
        for chain in chains:
            chain.split(fraction)
    except CommandError as failed:
        raise SystemExit(str(failed)) from failed
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(attempt, *job) for job in jobs(chains, names, ends=options.ends)]
        try:
            failures = [message for future in futures if (message := future.result())]
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)  # waits for the commands that were interrupted, too
            raise SystemExit("interrupted; the same command goes on") from None
    if failures:
        raise SystemExit("\n".join(["failed:", *failures]))
    console.print(f"done: {folder}/runs")


if __name__ == "__main__":
    main()
