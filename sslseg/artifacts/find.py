"""What a path is (split, run, checkpoint or store), and the model that is found through it."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sslseg.artifacts.checkpoint import LAST, read_checkpoint, snapshot_name
from sslseg.artifacts.run import RECORD, Run, enclosing_run
from sslseg.errors import IncompatibleError, UserError

Kind = Literal["split", "run", "checkpoint", "store"]


@dataclass(frozen=True)
class Artifact:
    """A path and what lies there."""

    kind: Kind
    path: Path


def identify(path: str | Path) -> Artifact:
    """Return what ``path`` is; raise UserError when it is missing or not one of ours."""
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
        meta: the checkpoint's metadata (``sslseg.engine.checkpoints``).
        run: the run directory around it, where there is one.
    """

    checkpoint: Path
    meta: dict[str, Any]
    state_dict: dict[str, Any]
    run: Run | None

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.meta["dataset"]["classes"])

    @functools.cached_property
    def config(self) -> Any:
        """The config that it was trained with; loading it imports the plug-ins that the config names."""
        from sslseg.config.files import loads
        from sslseg.config.upgrade import upgrade_config

        return upgrade_config(loads(self.meta["config"]), quiet=True)

    @functools.cached_property
    def method(self) -> Any:
        """The class of the method that it was trained with."""
        from sslseg.config.files import method_class

        return method_class(self.config)


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
    state = read_checkpoint(checkpoint)
    return Model(checkpoint, state["meta"], state["state_dict"], enclosing_run(checkpoint))


def find_snapshots(model: Model, *, option: str = "--agreement") -> tuple[list[Model], Model]:
    """Return the snapshots that the run of ``model`` kept, the earliest first, and the run's last model.

    Args:
        option: what needs them, for error messages.

    Raises:
        UserError: the model does not lie in a run, or its run kept no snapshots, is unfinished, or lost one.
    """
    from sslseg.config.lengths import snapshot_iterations

    if model.run is None:
        raise UserError(
            f"{option}: {model.checkpoint} does not lie in a run directory, which would hold snapshots; give a run"
        )
    iterations = snapshot_iterations(model.config.schedule)
    if not iterations:
        raise UserError(
            f"{option}: {model.run.folder} kept no snapshots; train again with --set 'schedule.snapshots=[0.333,0.667]'"
        )
    last = load_model(model.run.checkpoints / LAST)
    if last.meta["iteration"] < model.config.schedule.iterations:
        raise UserError(
            f"{option}: {model.run.folder} has done {last.meta['iteration']} of {model.config.schedule.iterations} iterations;"
            f" finish it with `sslseg train --resume --run-dir {model.run.folder}`"
        )
    paths = [model.run.checkpoints / snapshot_name(iteration) for iteration in iterations]
    for path in paths:
        if not path.exists():
            raise UserError(f"{option}: {path} is gone; train again in another directory, or leave {option} out")
    return [load_model(path) for path in paths], last


def build_method(model: Model) -> Any:
    """Build the whole method that ``model`` was trained with, with its weights, in evaluation mode on the chosen device."""
    from mmengine.device import get_device
    from mmengine.model import revert_sync_batchnorm

    from sslseg.config.fit import without_pretrained
    from sslseg.registry import MODELS

    settings = dict(model.config.method)
    for name in model.method.segmentors:
        if settings.get(name) is not None:
            settings[name] = without_pretrained(settings[name])
    try:
        method = MODELS.build(dict(settings, segmentor=without_pretrained(model.config.model)))
    except KeyError as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise UserError(
            f"{model.checkpoint} cannot be built: {reason}; install the package that defines it, or name its module in"
            " custom_imports of the config that trains"
        ) from error
    missing, unexpected = method.load_state_dict(model.state_dict, strict=False)
    if missing or unexpected:
        raise UserError(
            f"{model.checkpoint} does not fit its own config ({len(missing)} tensors missing, {len(unexpected)} too many);"
            " it was written by another version of sslseg"
        )
    return revert_sync_batchnorm(method).to(get_device()).eval()


def build_segmentor(model: Model) -> Any:
    """Build the plain segmentor that remains of ``model``, with its weights, in evaluation mode on the chosen device."""
    return build_method(model).eval_model


def check_classes(model: Model, classes: tuple[str, ...], *, where: str) -> None:
    """Raise IncompatibleError unless the model has exactly the classes of the dataset."""
    if len(model.classes) != len(classes):
        raise IncompatibleError(
            f"{model.checkpoint} has {len(model.classes)} classes, {where} has {len(classes)};"
            " give a model that was trained on this dataset"
        )
    if model.classes != tuple(classes):
        differing = next(pair for pair in zip(model.classes, classes, strict=True) if pair[0] != pair[1])
        raise IncompatibleError(
            f"{model.checkpoint} has class {differing[0]!r} where {where} has {differing[1]!r};"
            " give a model that was trained on this dataset"
        )
