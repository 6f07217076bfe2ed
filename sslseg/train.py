"""The training worker: from a split, a config and a method to a run directory."""

from __future__ import annotations

import contextlib
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslseg import __version__
from sslseg.artifacts.checkpoint import LAST
from sslseg.artifacts.run import Run, environment
from sslseg.config.build import TrainOptions, build_config
from sslseg.config.fit import weights_source
from sslseg.errors import Interrupted, UserError
from sslseg.progress import note
from sslseg.splits.split import Split

if TYPE_CHECKING:
    from sslseg.data.pseudo_masks import PseudoMasks

__all__ = ["TrainOptions", "build_config", "train"]

RUNNING, FINISHED = "running", "finished"
# In a run's record, for the runs that learn from its store: the path of the user's file, and the sources from the first run on.
PRETRAINED_FILE, PRETRAINED_BY_RUN = "pretrained_file", "pretrained_by_run"
FREE_TO_CHANGE = ("data.workers",)  # in the config of a run that is resumed


def train(
    split: Split,
    folder: Path,
    options: TrainOptions,
    *,
    base: Any = None,
    before: Sequence[str] = (),
    pseudo_masks: PseudoMasks | None = None,
    notes: dict[str, Any] | None = None,
) -> Run:
    """Train a method on ``split`` into ``folder`` and return the run.

    Args:
        base: config of an earlier run, whose model, batches and schedule are inherited (``build_config``).
        before: where the encoder weights of the runs before came from; a note says when this one's come from elsewhere.
        pseudo_masks: stored masks of the images, for the methods that learn from them.
        notes: further entries of the run's record.

    Raises:
        UserError: the folder holds a run and ``resume`` is off, or any input does not fit.
        Interrupted: stopped by a signal after saving; the same call with ``resume`` goes on.
    """
    from sslseg.config.files import method_class
    from sslseg.distributed import launch, on_main

    launch(options.launcher, options.device)
    run = Run(folder)
    config = build_config(split, options, base=base)
    if method_class(config).needs_pseudo_masks:
        if pseudo_masks is None:
            raise UserError(f"method {options.method!r} learns from stored pseudo-masks; use `sslseg refine STORE`")
        config.pseudo_masks = pseudo_masks.to_dict()
    record = _record(split, config, options, **(notes or {}))
    if before:
        record[PRETRAINED_BY_RUN] = [*before, record["pretrained"]]
        if before[-1] != record["pretrained"]:
            note(
                f"warning: the run before began with encoder weights {before[-1]}, this one with {record['pretrained']};"
                " --pretrained FILE names others"
            )
    if not options.dry_run:
        on_main(lambda: _claim(run, split, config, record, options))
        if run.read()["status"] == FINISHED:
            return run
    _fit(run, split, config, record, options, pseudo_masks)
    return run


def _claim(run: Run, split: Split, config: Any, record: dict[str, Any], options: TrainOptions) -> None:
    """Make the run directory, or check that it can be resumed; a finished run is left as it is."""
    if run.record_path.exists():
        found = run.read()
        if not options.resume:
            raise UserError(
                f"{run.folder} already holds a run ({found['status']}); add --resume to go on, or --run-dir for another"
            )
        if found["split_sha256"] != split.sha256:
            raise UserError(
                f"{run.folder} was trained on another split; give the split it began with, or --run-dir for another"
            )
        _check_config(run, config, record)
        if found["status"] == FINISHED:
            return
    elif run.folder.exists() and any(run.folder.iterdir()) and not run.checkpoints.exists():
        raise UserError(f"{run.folder} holds other files but not a run; give a new folder with --run-dir")
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    split.save(run.split_folder)
    run.config_path.write_text(config.pretty_text)
    run.write(dict(record, status=RUNNING))


def _check_config(run: Run, config: Any, record: dict[str, Any]) -> None:
    """Refuse to resume with other settings: the learning rate schedule and all random numbers depend on them."""
    from sslseg.config.assignments import flattened
    from sslseg.config.files import load

    before, now = flattened(load(run.config_path).to_dict()), flattened(config.to_dict())
    # A file's name is not in the config.
    before["pretrained"], now["pretrained"] = run.read().get("pretrained", record["pretrained"]), record["pretrained"]
    for key in sorted(before.keys() | now.keys()):
        if key not in FREE_TO_CHANGE and before.get(key) != now.get(key):
            raise UserError(
                f"{run.folder} began with {key} = {before.get(key)!r}, now it is {now.get(key)!r};"
                " resume with the settings it began with, or give --run-dir for another"
            )


def _record(split: Split, config: Any, options: TrainOptions, **more: Any) -> dict[str, Any]:
    if options.pretrained not in ("auto", "none"):
        more[PRETRAINED_FILE] = str(Path(options.pretrained).resolve())
    return dict(
        method=config.method.type,
        seed=config.seed,
        iterations=config.schedule.iterations,
        settings=options.assignments,
        pretrained=weights_source(config.model, options.pretrained),
        split_sha256=split.sha256,
        dataset=split.dataset.to_dict(),
        program_version=__version__,
        environment=environment(),
        **more,
    )


def _fit(
    run: Run,
    split: Split,
    config: Any,
    record: dict[str, Any],
    options: TrainOptions,
    pseudo_masks: PseudoMasks | None,
) -> None:
    from mmengine.dist import is_main_process

    from sslseg.engine.build import build_training

    with quiet_mmengine():
        try:
            training = build_training(run, split, config, options, pseudo_masks)
        except UserError:
            if is_main_process() and not (run.checkpoints / LAST).exists():
                # Nothing was trained: the same directory may be used again, with corrected input.
                run.record_path.unlink(missing_ok=True)
                shutil.rmtree(run.split_folder, ignore_errors=True)
            raise
        try:
            training.runner.train()
        finally:
            training.close()
    if options.dry_run:
        return
    if training.stop.stopped:
        done, iterations = training.runner.iter, config.schedule.iterations
        raise Interrupted(
            f"{run.folder} is saved at iteration {done} of {iterations}; the same command with --resume goes on"
        )
    if is_main_process():
        run.write(dict(record, status=FINISHED, **training.result()))


@contextlib.contextmanager
def quiet_mmengine() -> Iterator[None]:
    """Keep mmengine's log and third parties' warnings off the terminal; stdout belongs to the command's one line."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
