"""Checkpoint files: written whole or not at all, without anything that differs between equal runs."""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from typing import Any

from sslseg.errors import UserError
from sslseg.files import atomic_write

FORMAT, VERSION = "sslseg-checkpoint", 2
LAST, BEST = "last.pth", "best.pth"


def snapshot_name(iteration: int) -> str:
    """Return the file name of the snapshot that a training keeps after so many iterations (``schedule.snapshots``)."""
    return f"snapshot-{iteration}.pth"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint of ours, that of version 1 under today's names.

    Raises:
        UserError: it is damaged, another program's, or of a newer version.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint ({type(error).__name__}); it may be damaged") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds other things than weights; give a checkpoint of `sslseg train`") from error
    meta = state.get("meta", {}) if isinstance(state, dict) else {}
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a checkpoint of sslseg; give one of a run, or use it with `sslseg train --pretrained {path}`"
        )
    if meta["version"] > VERSION:
        raise UserError(f"{path} has version {meta['version']}, this program reads up to {VERSION}; update sslseg")
    if meta["version"] == 1:
        meta["iteration"] = meta.pop("iter")
        meta["best_iteration"] = meta.pop("best_iter", None)
    return state


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; raise OSError, where torch.save on a full disk raises an error of its own."""
    import torch

    buffer = io.BytesIO()
    torch.save(canonical(state), buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def canonical(value: Any) -> Any:
    """Rebuild containers and intern strings: pickle notes which objects are identical, which is not part of the state."""
    if isinstance(value, dict):
        return {canonical(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(canonical(item) for item in value)
    # A copy first: a string of a resumed run is another object than the same string of the code.
    return sys.intern(str(value)) if isinstance(value, str) else value
