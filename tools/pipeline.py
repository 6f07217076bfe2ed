"""Run a method's pipeline, from a split to scores, each step a command of ``sslseg``: python tools/pipeline.py METHOD [-- TRAIN OPTIONS].

The steps are those that the method declares (``sslseg methods NAME`` shows them). Every step gets the run of the step before it, and
``--resume``: typed again, the same line goes on where it stopped. ``make METHOD`` runs this.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from sslseg.catalog import find_method
from sslseg.config.auto import recommendation
from sslseg.plugins import AUTO

console = Console(stderr=True, highlight=False, soft_wrap=True)


class Step(NamedTuple):
    """One command of a pipeline.

    Attributes:
        source: the run that it begins with; empty for the first training.
        run: the run that it makes or works on.
        training: the number of that run's training in the pipeline, from 1.
    """

    command: str
    source: str
    run: str
    options: list[str]
    training: int

    def words(self, split: str) -> list[str]:
        """Return the command line; typed again, it goes on where it stopped."""
        begin = {"train": ["--split", split, "--run-dir", self.run], "refine": [self.source, "--run-dir", self.run]}
        resume = [] if self.command == "eval" else ["--resume"]
        return [self.command, *begin.get(self.command, [self.run]), *self.options, *resume]


def steps(method: str, run_of: Callable[[str, int], str]) -> list[Step]:
    """Return the pipeline that a method declares; that of the recommended method for ``auto``, which a split may not allow.

    Args:
        run_of: names the run directory of each training, by its method and number (from 1).
    """
    found: list[Step] = []
    run, number = "", 0
    for text in find_method(recommendation().recommended if method == AUTO else method).cls.pipeline:
        command, *options = shlex.split(text)
        source = run
        if command == "train" and "--method" not in options:
            options = ["--method", method, *options]
        if command in ("train", "refine"):
            number += 1
            run = run_of(options[options.index("--method") + 1] if command == "train" else method, number)
        found.append(Step(command, source, run, options, number))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method")
    parser.add_argument("--work", type=Path, default=Path(), help="working folder")
    parser.add_argument(
        "--data", type=Path, help="folder of images and masks; by default the built-in synthetic dataset"
    )
    parser.add_argument("--ratio", default="1/8", help="fraction of training images that count as labeled")
    options, train = parser.parse_known_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    lines = [["split", "--ratio", options.ratio, "--out", "split"]]
    if options.data is not None and not (work / "sslseg.toml").exists():
        lines.insert(0, ["init", "--data", str(options.data.absolute())])
    more = [word for word in train if word != "--"]
    for step in steps(options.method, lambda _, number: f"stage{number}"):
        lines.append([*step.words("split"), *(more if step.command in ("train", "refine") else [])])
    for line in lines:
        console.print(f"$ sslseg {shlex.join(line)}")
        code = subprocess.run([sys.executable, "-m", "sslseg", *line], cwd=work).returncode
        if code:
            sys.exit(code)


if __name__ == "__main__":
    main()
