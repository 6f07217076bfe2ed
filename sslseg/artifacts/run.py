"""The run directory: config, record, metrics, last and best checkpoint."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslseg.errors import UserError
from sslseg.files import write_json

FORMAT, VERSION = "sslseg-run", 2
RECORD, METRICS = "run.json", "metrics.jsonl"


@dataclass(frozen=True)
class Run:
    """A run directory.

    ``run.json`` is its record; ``config.py`` the whole config; ``split/`` a copy of the split; ``checkpoints/last.pth`` and
    ``checkpoints/best.pth`` the models; ``metrics.jsonl`` and ``train.log`` the history.
    """

    folder: Path

    @property
    def record_path(self) -> Path:
        return self.folder / RECORD

    @property
    def config_path(self) -> Path:
        return self.folder / "config.py"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def split_folder(self) -> Path:
        return self.folder / "split"

    @property
    def stores(self) -> Path:
        return self.folder / "stores"

    def read(self) -> dict[str, Any]:
        """Return the record, that of version 1 under today's names; raise UserError if it is missing or not ours."""
        try:
            record = json.loads(self.record_path.read_text())
        except FileNotFoundError as error:
            raise UserError(
                f"{self.folder} is not a run directory: it has no {RECORD}; give one that `sslseg train` made"
            ) from error
        except ValueError as error:
            raise UserError(
                f"{self.record_path} is not valid JSON ({error}); train again in another directory"
            ) from error
        if record.get("format") != FORMAT or record.get("version", 0) > VERSION:
            raise UserError(
                f"{self.record_path} has format {record.get('format')!r} version {record.get('version')}, this program"
                f" reads {FORMAT!r} up to version {VERSION}; update sslseg"
            )
        return _upgraded(record) if record.get("version") == 1 else record

    def write(self, record: dict[str, Any]) -> None:
        write_json(self.record_path, dict(format=FORMAT, version=VERSION) | record)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the training curves: the records of ``metrics.jsonl``, those of version 1 under today's names."""
        path = self.folder / METRICS
        records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [{"iteration" if key == "step" else key: value for key, value in record.items()} for record in records]

    def checkpoint(self, which: str) -> Path:
        """Return the path of the ``last`` or ``best`` checkpoint; without validation the best is the last."""
        path = self.checkpoints / f"{which}.pth"
        if which == "best" and not path.exists():
            path = self.checkpoints / "last.pth"
        if not path.exists():
            raise UserError(
                f"{self.folder} has no checkpoint yet; go on with `sslseg train --resume --run-dir {self.folder}`"
            )
        return path


def _upgraded(record: dict[str, Any]) -> dict[str, Any]:
    if "iters" in record:
        record["iterations"] = record.pop("iters")
    for which in ("last", "best"):
        if "iter" in record.get(which, {}):
            record[which]["iteration"] = record[which].pop("iter")
    return record


def enclosing_run(checkpoint: Path) -> Run | None:
    """Return the run that a checkpoint lies in, if it does."""
    path = checkpoint if len(checkpoint.parts) > 2 else checkpoint.absolute()
    folder = path.parent.parent
    return Run(folder) if (folder / RECORD).exists() else None


def environment() -> dict[str, str]:
    """Return what a result depends on beside config and seed: device, versions, and the commit of a checkout."""
    import torch
    from mmengine.device import get_device

    device = torch.cuda.get_device_name() if get_device() == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    found = dict(device=device, python=platform.python_version(), torch=torch.__version__)
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / ".git").exists():
        command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=10"]
        with contextlib.suppress(OSError):
            found["commit"] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return found
