"""What a path is (split, run, checkpoint or store), and the model that is found through it."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sslseg.errors import IncompatibleError, UserError
from sslseg.run import RECORD, Run, enclosing_run

Kind = Literal["split", "run", "checkpoint", "store"]


@dataclass(frozen=True)
class Artifact:
    """A path and what lies there."""

    kind: Kind
    path: Path


def identify(path: str | Path) -> Artifact:
    """Tell what ``path`` is; raise UserError when it is missing or nothing of ours."""
    path = Path(path)
    if path.is_dir():
        if (path / RECORD).exists():
            return Artifact("run", path)
        if (path / "split.json").exists():
            return Artifact("split", path / "split.json")
        raise UserError(
            f"{path} is a folder without {RECORD} or split.json; give a run, a split, a checkpoint or a store"
        )
    if path.suffix in (".h5", ".hdf5") and (path.exists() or path.with_name(path.name + ".partial").exists()):
        return Artifact("store", path)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a run directory, a checkpoint (.pth) or a store (.h5)")
    if path.name == RECORD:
        return Artifact("run", path.parent)
    if path.suffix == ".json":
        return Artifact("split", path)
    if path.suffix in (".pth", ".pt"):
        return Artifact("checkpoint", path)
    raise UserError(f"{path} is neither a run directory, a split (.json), a checkpoint (.pth) nor a store (.h5)")


@dataclass(frozen=True)
class Model:
    """A trained segmentor as it is found on disk.

    Attributes:
        checkpoint: the ``.pth`` file.
        meta: what the checkpoint tells of itself (``sslseg.engine.checkpoints``).
        run: the run directory around it, where there is one.
    """

    checkpoint: Path
    meta: dict[str, Any]
    state_dict: dict[str, Any]
    run: Run | None

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.meta["dataset"]["classes"])


def find_model(source: str | Path, *, which: str = "best") -> Model:
    """Return the model of a run (its ``best`` or ``last`` checkpoint), of a checkpoint, or the one that made a store."""
    artifact = identify(source)
    if artifact.kind == "run":
        return load_model(Run(artifact.path).checkpoint(which))
    if artifact.kind == "checkpoint":
        return load_model(artifact.path)
    if artifact.kind == "store":
        from sslseg.store import StoreReader

        checkpoint = Path(json.loads(StoreReader(artifact.path).header.provenance)["checkpoint"])
        if not checkpoint.exists():
            raise UserError(
                f"store {artifact.path} was made with {checkpoint}, which is gone; give a run or a checkpoint"
            )
        return load_model(checkpoint)
    raise UserError(f"{source} is a {artifact.kind}, not a model; give a run directory, a checkpoint or a store")


def load_model(checkpoint: Path) -> Model:
    """Read a checkpoint of ours; raise UserError when it is another program's or damaged."""
    import torch

    from sslseg.engine.checkpoints import FORMAT, VERSION

    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{checkpoint} cannot be read as a checkpoint ({type(error).__name__}); it may be damaged"
        ) from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{checkpoint} holds other things than weights; give a checkpoint of `sslseg train`") from error
    meta = state.get("meta", {}) if isinstance(state, dict) else {}
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{checkpoint} is no checkpoint of sslseg; give one of a run, or use it with `sslseg train --pretrained {checkpoint}`"
        )
    if meta["version"] > VERSION:
        raise UserError(
            f"{checkpoint} has version {meta['version']}, this program reads up to {VERSION}; update sslseg"
        )
    return Model(checkpoint, meta, state["state_dict"], enclosing_run(checkpoint))


def build_method(model: Model) -> Any:
    """Build the whole method that ``model`` was trained with, with its weights, in evaluation mode on the chosen device."""
    from mmengine.config import Config
    from mmengine.device import get_device
    from mmengine.model import revert_sync_batchnorm

    from sslseg.registry import METHODS, import_mmseg

    import_mmseg()
    config = Config.fromstring(model.meta["config"], file_format=".py")
    if config.method.get("right"):
        config.method.right = without_pretrained(config.method.right)
    method = METHODS.build(dict(config.method, segmentor=without_pretrained(config.model)))
    missing, unexpected = method.load_state_dict(model.state_dict, strict=False)
    if missing or unexpected:
        raise UserError(
            f"{model.checkpoint} does not fit its own config ({len(missing)} tensors missing, {len(unexpected)} too many);"
            " it was written by another version of sslseg"
        )
    return revert_sync_batchnorm(method).to(get_device()).eval()


def build_segmentor(model: Model) -> Any:
    """Build the plain segmentor that ``model`` deploys, with its weights, in evaluation mode on the chosen device."""
    return build_method(model).deployed


def without_pretrained(config: Any) -> Any:
    """Return a copy of a segmentor config that names no pretrained weights: a checkpoint brings its own."""
    config = type(config)(config.to_dict())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part.pop("pretrained", None)
        if (part.get("init_cfg") or {}).get("type") == "Pretrained":
            part.pop("init_cfg")
    return config


def check_classes(model: Model, classes: tuple[str, ...], *, where: str) -> None:
    """Raise IncompatibleError unless the model knows exactly the classes of the dataset."""
    if len(model.classes) != len(classes):
        raise IncompatibleError(
            f"{model.checkpoint} knows {len(model.classes)} classes, {where} has {len(classes)};"
            " give a model that was trained on this dataset"
        )
    if model.classes != tuple(classes):
        differing = next(pair for pair in zip(model.classes, classes, strict=True) if pair[0] != pair[1])
        raise IncompatibleError(
            f"{model.checkpoint} has class {differing[0]!r} where {where} has {differing[1]!r};"
            " give a model that was trained on this dataset"
        )
