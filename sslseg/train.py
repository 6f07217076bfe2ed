"""The training worker: from a split, a config and a method to a run directory."""

from __future__ import annotations

import contextlib
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslseg import __version__
from sslseg.artifacts.checkpoint import LAST
from sslseg.artifacts.run import Run, environment
from sslseg.config.auto import choose, is_auto, recommendation, settle
from sslseg.config.build import TrainOptions, build_config
from sslseg.config.fit import weights_source
from sslseg.errors import Interrupted, UserError
from sslseg.plugins import method_names
from sslseg.progress import note
from sslseg.splits.split import Split

if TYPE_CHECKING:
    from sslseg.data.pseudo_masks import PseudoMasks

__all__ = ["TrainOptions", "build_config", "train"]

RUNNING, FINISHED = "running", "finished"
BY_AUTO = "auto"  # in a run's record: the method that `auto` stood for, None where the user named it; earlier versions lack it
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
    began = run.read() if options.resume and run.record_path.exists() else {}
    choice = ""
    if is_auto(options):
        options, choice = _chosen(split, options, run, began)
    left_out = len(pseudo_masks.left_out) if pseudo_masks is not None else 0
    config = build_config(split, options, base=base, left_out=left_out)
    if method_class(config).needs_pseudo_masks:
        if pseudo_masks is None:
            name = options.config or options.method
            raise UserError(f"method {name!r} learns from stored pseudo-masks; use `sslseg refine STORE`")
        config.pseudo_masks = pseudo_masks.to_dict()
    by_auto = began.get(BY_AUTO, options.method if choice else None)
    record = _record(split, config, options, **{BY_AUTO: by_auto}, **(notes or {}))
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
    _fit(run, split, config, record, options, pseudo_masks, choice)
    return run


def default_folder(runs: Path, split: Split, split_name: str, options: TrainOptions) -> Path:
    """Return the run directory that is named after method and split.

    Under ``auto``, to resume is to go on with the newest run of this split that ``auto`` has begun, whatever it stands for today;
    so it is with an unfinished run of an earlier version, whose default was the method that needs no unlabeled images.
    """
    if not is_auto(options):
        return runs / f"{options.method}-{split_name}"
    found = []
    for name in method_names() if options.resume else ():
        run = Run(runs / f"{name}-{split_name}")
        record = run.read() if run.record_path.exists() else {BY_AUTO: None}
        old = BY_AUTO not in record and record["status"] != FINISHED and name == recommendation().without_unlabeled
        if old or record.get(BY_AUTO):
            found.append(run)
    if found:
        return max(found, key=lambda run: run.record_path.stat().st_mtime_ns).folder
    return runs / f"{choose(split)[0]}-{split_name}"


def _chosen(split: Split, options: TrainOptions, run: Run, began: dict[str, Any]) -> tuple[TrainOptions, str]:
    """Return options with the method that ``auto`` stands for, and a line for the user.

    A resumed run keeps its method, and its number of unlabeled images per iteration where the user gives none.
    """
    from sslseg.config.files import load, load_method

    name = began.get(BY_AUTO)
    if began and name is None:  # the user named it then, or the run is of an earlier version
        kinds = (other for other in method_names() if load_method(other).method.type == began["method"])
        name = next(kinds, None)
    if name is None:
        options, reason = settle(options, split)
        return options, (
            f"method auto: {options.method}, {reason}; --method NAME chooses another, `sslseg methods` lists them"
        )
    number = options.unlabeled_batch_size or load(run.config_path).data.get("unlabeled_batch_size")
    message = f"method auto: {name}, with which {run.folder} began; --run-dir names another run"
    return replace(options, method=name, unlabeled_batch_size=number), message


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
    message: str,
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
        if message:
            note(message)  # only now: an error in the user's input is one line
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
