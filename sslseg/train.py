"""The training worker: from a split, a config and a method to a run directory."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslseg import __version__
from sslseg.errors import Interrupted, UserError
from sslseg.run import Run, environment
from sslseg.split import Split

if TYPE_CHECKING:
    from sslseg.data.pseudo import PseudoMasks

CROP_STEP, CROP_RANGE = 32, (96, 512)
RUNNING, FINISHED = "running", "finished"
FREE_TO_CHANGE = ("data.workers",)  # of a run's config when it is resumed
TAKEN_OVER = ("model", "schedule", "optimizer", "paramwise", "data", "evaluation")  # from one stage by the next


@dataclass(frozen=True)
class TrainOptions:
    """What the user asked for; None leaves the config's value."""

    method: str = "supervised"
    config: str | None = None
    model: str | None = None
    iters: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    unlabeled_batch_size: int | None = None
    lr: float | None = None
    crop: tuple[int, int] | None = None
    val_interval: int | None = None
    workers: int | None = None
    seed: int = 0
    amp: bool = False
    pretrained: str = "auto"
    device: str = "auto"
    launcher: str = "none"
    resume: bool = False
    dry_run: bool = False
    assignments: dict[str, Any] = field(default_factory=dict)


def train(
    split: Split,
    folder: Path,
    options: TrainOptions,
    *,
    base: Any = None,
    pseudo_masks: PseudoMasks | None = None,
    notes: dict[str, Any] | None = None,
) -> Run:
    """Train a method on ``split`` into ``folder`` and return the run.

    Args:
        base: config of an earlier run, whose model, batches and schedule are taken over (``build_config``).
        pseudo_masks: stored masks of the images, for the methods that learn from them.
        notes: what the run's record shall tell beside the rest.

    Raises:
        UserError: the folder holds a run and ``resume`` is off, or any input does not fit.
        Interrupted: stopped by a signal after saving; the same call with ``resume`` goes on.
    """
    from sslseg.distributed import launch, on_main
    from sslseg.registry import METHODS

    launch(options.launcher, options.device)
    run = Run(folder)
    config = build_config(split, options, base=base)
    if METHODS.get(config.method.type).needs_pseudo_masks:
        if pseudo_masks is None:
            raise UserError(f"method {options.method!r} learns from stored pseudo-masks; use `sslseg refine STORE`")
        config.pseudo_masks = pseudo_masks.to_dict()
    record = _record(split, config, options, **(notes or {}))
    if not options.dry_run:
        on_main(lambda: _claim(run, split, config, record, options))
        if run.read()["status"] == FINISHED:
            return run
    _fit(run, split, config, record, options, pseudo_masks)
    return run


def build_config(split: Split, options: TrainOptions, *, base: Any = None) -> Any:
    """Return the whole config: shipped or own file, then the flags, then ``--set``; fitted to the split's dataset.

    Unless the options name a config, what ``base`` says of ``TAKEN_OVER`` wins over the shipped file.
    """
    from sslseg import config as configs
    from sslseg.data.labels import ignore_value
    from sslseg.registry import METHODS, import_mmseg

    import_mmseg()
    known = sorted({name.split("/")[0] for name in configs.config_names()})
    if options.config is None and options.method not in known:
        raise UserError(f"method {options.method!r} is unknown; use --method with one of: {', '.join(known)}")
    config = configs.load_named(options.config or f"{options.method}/default")
    if base is not None and options.config is None:
        for key in TAKEN_OVER:
            if key in base:
                config[key] = copy.deepcopy(base[key])
    for key in ("model", "method", "schedule", "optimizer", "data", "views", "evaluation"):
        if key not in config:
            raise UserError(
                f"config {config.filename} has no {key!r}; base it on configs/_base_ as the shipped ones are"
            )
    if METHODS.get(config.method.type) is None:
        raise UserError(f"config {config.filename}: method.type {config.method.type!r} is unknown")
    if options.model is not None:
        config.model = configs.load_model(options.model)
    flags = {
        "schedule.iters": options.iters,
        "data.batch_size": options.batch_size,
        "data.unlabeled_batch_size": options.unlabeled_batch_size,
        "data.crop": options.crop,
        "data.workers": options.workers,
        "optimizer.lr": options.lr,
        "schedule.val_interval": options.val_interval,
    }
    configs.apply_assignments(config, {key: value for key, value in flags.items() if value is not None})
    classes = split.dataset.num_classes
    config.model = configs.fit_model(config.model, num_classes=classes, ignore_index=ignore_value(classes))
    if config.data.get("crop") is None:
        config.data.crop = _default_crop(split)
    configs.apply_assignments(config, options.assignments)
    if config.method.get("right"):
        _fit_right(config, classes)
        _apply_pretrained(config.method.right, options.pretrained)
    _apply_pretrained(config.model, options.pretrained)
    _set_lengths(split, config, options)
    config.seed = options.seed
    config.amp = options.amp
    _check(config)
    return config


def _set_lengths(split: Split, config: Any, options: TrainOptions) -> None:
    """Turn what is given in epochs or in images into steps and shares of the training.

    ``schedule.samples`` is the N of GCT's paper (Sec. 4), all images of all batches; ``schedule.epochs`` passes through
    the unlabelled images, also for a method that does not see them: equal steps for all. Any ``method.NAME_epochs``
    becomes the share ``method.NAME``, unless that is set itself, and ``method.epochs`` all passes, where it is None.
    """
    schedule, method = config.schedule, config.method
    if options.epochs is not None:
        schedule.iters = options.epochs * steps_per_epoch(split, config)
    elif options.iters is None and "schedule.iters" not in options.assignments:
        if schedule.get("samples") is not None:
            schedule.iters = schedule.samples // sum(_batch_counts(config).values())
        elif schedule.get("epochs") is not None:
            count = batch_counts(config, ("unlabeled",))["unlabeled"]
            schedule.iters = schedule.epochs * math.ceil(len(split.samples("unlabeled")) / count)
    for name in [name for name in method if name.endswith("_epochs")]:
        epochs, share = method.pop(name), name.removesuffix("_epochs")
        if epochs is not None and f"method.{share}" not in options.assignments:
            method[share] = epochs * steps_per_epoch(split, config) / schedule.iters
    if "epochs" in method and method.epochs is None:
        method.epochs = schedule.iters / steps_per_epoch(split, config)


def _fit_right(config: Any, classes: int) -> None:
    """Replace the name of a second model by its config, fitted as the first one's is."""
    from sslseg import config as configs
    from sslseg.data.labels import ignore_value

    right = config.method.right
    right = configs.load_model(right) if isinstance(right, str) else right
    config.method.right = configs.fit_model(right, num_classes=classes, ignore_index=ignore_value(classes))


def _check(config: Any) -> None:
    from sslseg.registry import METHODS

    schedule, data = config.schedule, config.data
    known = inspect.signature(METHODS.get(config.method.type)).parameters.keys() - {"segmentor"}
    for key in sorted(config.method.keys() - known - {"type"}):
        raise UserError(
            f"method.{key} is no setting of {config.method.type}; known: {', '.join(sorted(known)) or 'none'}"
        )
    if not isinstance(schedule.iters, int) or schedule.iters < 1:
        raise UserError(f"schedule.iters is {schedule.iters!r}; give at least 1 with --iters")
    if not isinstance(data.batch_size, int) or data.batch_size < 1:
        raise UserError(f"data.batch_size is {data.batch_size!r}; give at least 1 with --batch-size")
    if min(data.crop) < 32:
        raise UserError(f"data.crop is {tuple(data.crop)}; give at least 32 pixels a side with --crop")
    if not config.optimizer.lr > 0:
        raise UserError(f"optimizer.lr is {config.optimizer.lr!r}; give a positive --lr")


def _default_crop(split: Split) -> tuple[int, int]:
    """Half the first labelled image's short side in steps of 32, between 96 and 512."""
    from sslseg.data.files import read_image

    side = min(read_image(split.samples("labeled")[0].image).shape[:2]) // 2
    side = min(max(side // CROP_STEP * CROP_STEP, CROP_RANGE[0]), CROP_RANGE[1])
    return side, side


def steps_per_epoch(split: Split, config: Any) -> int:
    """Return the steps of one pass over the larger stream that the method reads."""
    counts = _batch_counts(config)
    return max(math.ceil(len(split.samples(name)) / count) for name, count in counts.items())


def _batch_counts(config: Any) -> dict[str, int]:
    from sslseg.registry import METHODS

    return batch_counts(config, METHODS.get(config.method.type).views)


def batch_counts(config: Any, streams: Any) -> dict[str, int]:
    """Return how many images of each stream a batch holds, over all ranks together."""
    labeled = config.data.batch_size
    unlabeled = config.data.get("unlabeled_batch_size") or labeled
    return {name: labeled if name == "labeled" else unlabeled for name in streams}


def _apply_pretrained(model: Any, pretrained: str) -> None:
    """``none`` removes every pretrained reference, ``auto`` keeps them, a path is loaded after the model is built."""
    if pretrained == "auto":
        return
    if pretrained != "none" and not Path(pretrained).is_file():
        raise UserError(f"--pretrained {pretrained!r} is no file; give none, auto or the path of a checkpoint")
    for part in (model, *(value for value in model.values() if isinstance(value, dict))):
        if part.get("init_cfg") and dict(part["init_cfg"]).get("type") == "Pretrained":
            part.pop("init_cfg")
        part.pop("pretrained", None)


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
        _check_config(run, config)
        if found["status"] == FINISHED:
            return
    elif run.folder.exists() and any(run.folder.iterdir()) and not run.checkpoints.exists():
        raise UserError(f"{run.folder} holds other files and no run; give a new folder with --run-dir")
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    split.save(run.split_folder)
    run.config_path.write_text(config.pretty_text)
    run.write(dict(record, status=RUNNING))


def _check_config(run: Run, config: Any) -> None:
    """Refuse to resume with other settings: the learning rate's course and every draw depend on them."""
    from sslseg.config import flattened, load

    before, now = flattened(load(run.config_path).to_dict()), flattened(config.to_dict())
    for key in sorted(before.keys() | now.keys()):
        if key not in FREE_TO_CHANGE and before.get(key) != now.get(key):
            raise UserError(
                f"{run.folder} began with {key} = {before.get(key)!r}, now it is {now.get(key)!r};"
                " resume with the settings it began with, or give --run-dir for another"
            )


def _record(split: Split, config: Any, options: TrainOptions, **more: Any) -> dict[str, Any]:
    return dict(
        method=config.method.type,
        seed=config.seed,
        iters=config.schedule.iters,
        settings=options.assignments,
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
            if is_main_process() and not (run.checkpoints / "last.pth").exists():
                # Nothing was trained: the same directory may be used again, with mended input.
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
        step, iters = training.runner.iter, config.schedule.iters
        raise Interrupted(f"{run.folder} is saved at step {step} of {iters}; the same command with --resume goes on")
    if is_main_process():
        run.write(dict(record, status=FINISHED, **training.result()))


@contextlib.contextmanager
def quiet_mmengine() -> Iterator[None]:
    """Keep mmengine's remarks and third parties' warnings off the terminal; stdout belongs to the command's one line."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
