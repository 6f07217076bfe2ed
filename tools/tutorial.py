"""Run the CamVid tutorial's commands as a user types them, and write the session into its page.

    python tools/tutorial.py docs/tutorials/camvid.md --data PATH/TO/camvid --folder EMPTY_FOLDER

What the terminal shows is kept as it is, but for progress without scores; places of this machine become ``camvid``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from pages import rewritten

from sslseg.artifacts.run import environment

CLASSES = "Sky,Building,Pole,Road,Pavement,Tree,SignSymbol,Fence,Car,Pedestrian,Bicyclist"
PROGRESS = re.compile(
    r"^(iteration .* s/iteration, .* left|(look at masks|scan|predict|export|evaluate|read masks) \d+/\d+)$"
)


def commands(data: Path) -> list[list[str]]:
    """Return the tutorial's commands."""
    return [
        ["init", "--data", str(data), "--ignore-index", "11", "--classes", CLASSES],
        ["split", "--ratio", "1/8"],
        ["train", "--method", "supervised"],
        ["pseudolabel", "--export-png", "pictures"],
        ["eval", "--figures", "figures"],
        ["eval", "runs/supervised-camvid-1_8-seed0/stores/unlabeled.h5"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the folder of CamVid")
    parser.add_argument("--folder", type=Path, required=True, help="working folder; must be empty")
    options = parser.parse_args()
    data = options.data.absolute()
    options.folder.mkdir(parents=True, exist_ok=True)
    session: list[str] = []
    for arguments in commands(data):
        shown = f"$ sslseg {' '.join(arguments)}"
        print(shown, file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "sslseg", *arguments],
            cwd=options.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            sys.exit(done.stdout)
        lines = [line.rstrip() for line in done.stdout.splitlines() if not PROGRESS.match(line)]
        session += [shown, *lines, ""]
    text = "\n".join(session).replace(str(data), "camvid").replace(f"{options.folder.absolute()}/", "")
    found = ", ".join(f"{name} {value}" for name, value in environment().items())
    block = f"Measured with {found}; seed 0.\n\n```text\n{text.rstrip()}\n```"
    options.page.write_text(rewritten(options.page.read_text(), block, tool="tools/tutorial.py"))


if __name__ == "__main__":
    main()
