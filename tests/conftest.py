"""Real files for every test: a small synthetic dataset, CamVid where it is at hand, and the program itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from sslseg.config.build import TrainOptions
from sslseg.data import synthetic as shapes
from sslseg.data.description import DatasetDescription
from sslseg.evaluation.figures import save_image, save_palette_png
from sslseg.split import SplitOptions, make_split
from sslseg.splits.split import Split

# Two workers of pytest share two cores; with more threads the sums, and so the bits, would differ from `program`'s.
torch.set_num_threads(1)

SIZE, TRAIN, VAL = 64, 16, 6
# Tests train the small model, in less than a tenth of the default's time; tests/test_pretrained.py has those of the default.
MODEL = "deeplabv3plus_r18s"
SHORT = ("--model", MODEL, "--iterations", "4", "--batch-size", "2", "--crop", "48", "--workers", "0")
SUPERVISED = ("train", "--method", "supervised", *SHORT)
OPTIONS = TrainOptions(
    method="supervised", model=MODEL, iterations=20, batch_size=2, crop=(48, 48), workers=0, val_interval=5
)


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def path(self) -> Path:
        """The path that a successful command printed as its only line."""
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1, f"stdout is not one line: {self.out!r}"
        return Path(self.out.strip())


Sslseg = Callable[..., Done]


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 16 + 6 synthetic images of 64 x 64 in the ``folder`` layout; never change it."""
    root = tmp_path_factory.mktemp("toy") / "toy"
    for index in range(TRAIN + VAL):
        side = "train" if index < TRAIN else "val"
        image, mask = shapes.draw(index, seed=7, size=SIZE)
        save_image(root / "images" / side / f"{index:03d}.png", image)
        save_palette_png(root / "masks" / side / f"{index:03d}.png", mask, shapes.PALETTE)
    (root / "classes.txt").write_text("\n".join(shapes.CLASSES) + "\n")
    return root


@pytest.fixture(scope="session")
def toy(toy_folder: Path) -> DatasetDescription:
    return DatasetDescription("folder", str(toy_folder), "toy", shapes.CLASSES, shapes.PALETTE)


@pytest.fixture
def toy_split(toy: DatasetDescription) -> Split:
    return make_split(toy, SplitOptions(count=4))


@pytest.fixture
def workspace(tmp_path: Path, toy_split: Split, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, the current one, with one split of the toy dataset."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    toy_split.save(folder / "splits" / "toy-4")
    return folder


@pytest.fixture
def sslseg(capfd: pytest.CaptureFixture[str]) -> Sslseg:
    """Run a command of the program in this process; ``sslseg("split", "--ratio", "1/8")``."""
    from sslseg.cli.app import app
    from sslseg.cli.console import run

    def call(*arguments: str | Path) -> Done:
        capfd.readouterr()
        code = run(lambda: app(list(map(str, arguments)), standalone_mode=False, prog_name="sslseg"))
        captured = capfd.readouterr()
        return Done(code, captured.out, captured.err)

    return call


def program(*arguments: str | Path, cwd: Path, ranks: int = 1, stdin: str | None = None, timeout: float = 240) -> Done:
    """Run the program in a process of its own, or under torchrun on ``ranks`` processes with gloo."""
    command: Sequence[str] = (sys.executable, "-m", "sslseg")
    if ranks > 1:
        launcher = (
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(ranks),
            "-m",
            "sslseg",
        )
        command = (sys.executable, *launcher)
        arguments = (*arguments, "--launcher", "pytorch")
    environment = os.environ | dict(OMP_NUM_THREADS="1")
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The CamVid folder of ``SSLSEG_CAMVID`` or ``../shared/camvid`` beside the checkout."""
    checkout = Path(__file__).resolve().parent.parent
    root = Path(os.environ.get("SSLSEG_CAMVID", checkout.parent / "shared" / "camvid"))
    if not root.is_dir():
        pytest.skip(f"CamVid is not at {root}; set SSLSEG_CAMVID to test on real input")
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, toy: DatasetDescription) -> Path:
    """A finished run of a few iterations on the toy dataset; copy it before changing it."""
    from sslseg.train import train

    folder = tmp_path_factory.mktemp("trained") / "run"
    split = make_split(toy, SplitOptions(count=4))
    options = replace(OPTIONS, iterations=80, batch_size=4, lr=3e-3, val_interval=40)
    return train(split, folder, options).folder
