"""From a config to an mmengine Runner: model, loaders, optimizer, schedule and hooks."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.device import get_device
from mmengine.dist import get_rank, get_world_size, is_distributed, is_main_process
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from sslseg import __version__
from sslseg.artifacts.checkpoint import BEST, LAST
from sslseg.artifacts.run import Run
from sslseg.compat import end_workers
from sslseg.config.build import TrainOptions
from sslseg.config.fit import weights_source
from sslseg.config.lengths import Lengths, batch_counts, rescaling_messages, snapshot_iterations
from sslseg.data.dataset import (
    ImageDataset,
    StreamDataset,
    image_loader,
    seed_everything,
    train_loader,
)
from sslseg.data.description import Sample
from sslseg.data.labels import ignore_value
from sslseg.data.pseudo_masks import PseudoMasks
from sslseg.engine.checkpoints import Checkpoints
from sslseg.engine.iterations import IterationSeed, MethodIterations, StopOnSignal, SyncBuffers
from sslseg.engine.monitor import Monitor
from sslseg.engine.optimizers import JointOptimizerConstructor
from sslseg.engine.validation import ScoreLoop
from sslseg.engine.weights import initialize
from sslseg.errors import UserError
from sslseg.inference import Protocol
from sslseg.registry import MODELS
from sslseg.splits.split import Split

LOG = "mmengine.log"
RECORDS_A_RUN, LARGEST_RECORD_INTERVAL = 100, 50
VALIDATION_BATCH = 4


@dataclass
class Training:
    """A runner and the hooks whose results outlive it."""

    runner: Runner
    checkpoints: Checkpoints
    monitor: Monitor
    stop: StopOnSignal
    loader: DataLoader
    scratch: Path

    def result(self) -> dict[str, Any]:
        """Return the record of a finished training: last and best checkpoint with their scores."""
        loop = self.runner.val_loop
        kept = self.checkpoints
        last = dict(iteration=self.runner.iter, checkpoint=f"checkpoints/{LAST}", mIoU=kept.last_score)
        if loop is None:
            return dict(last=last, best=last, protocol=None)
        best = dict(iteration=kept.best_iteration, checkpoint=f"checkpoints/{BEST}", mIoU=kept.best_score)
        return dict(last=last, best=best, protocol=str(loop.protocol))

    def close(self) -> None:
        """Release the terminal, the signals and mmengine's scratch folder."""
        self.monitor.close()
        end_workers(self.loader)
        self.stop.restore()
        shutil.rmtree(self.scratch, ignore_errors=True)


def build_training(
    run: Run, split: Split, config: Any, options: TrainOptions, pseudo_masks: PseudoMasks | None = None
) -> Training:
    """Build everything that ``config`` describes; only the hooks write, during training."""
    seed_everything(options.seed)
    iterations = 1 if options.dry_run else config.schedule.iterations
    interval = config.schedule.get("val_interval") or max(iterations // config.schedule.validations, 1)
    meta = checkpoint_meta(split, config) | dict(pretrained=weights_source(config.model, options.pretrained))
    snapshots = snapshot_iterations(config.schedule)
    checkpoints = Checkpoints(run.checkpoints, interval=interval, meta=meta, resume=options.resume, snapshots=snapshots)
    record_interval = max(min(iterations // RECORDS_A_RUN, LARGEST_RECORD_INTERVAL), 1)
    monitor = Monitor(run.folder, interval=record_interval, classes=split.dataset.classes)
    stop = StopOnSignal()
    lengths = Lengths(iterations, config.schedule.iterations_per_epoch)
    hooks = [IterationSeed(options.seed), MethodIterations(lengths), SyncBuffers(interval, snapshots), stop]
    if not options.dry_run:
        hooks += [monitor, checkpoints]
    name = f"sslseg-{uuid.uuid4().hex}"
    logger = quiet_logger(name, None if options.dry_run else run.folder / LOG)
    model = MODELS.build(dict(config.method, segmentor=config.model))
    sources = {
        name: weights_source(config.method.get(name) or config.model, options.pretrained) for name in model.segmentors
    }
    initialize(model, options.pretrained, dict(student=meta["pretrained"]) | sources)
    model.messages += rescaling_messages(config)
    loader = stream_loader(split, config, model, pseudo_masks)
    arguments: dict[str, Any] = dict(
        model=model,
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=iterations, val_interval=interval, val_begin=0),
        optim_wrapper=optim_wrapper(config),
        param_scheduler=param_schedulers(config, iterations),
        **({} if options.dry_run or not split.val else validation(split, config)),
        default_hooks=dict.fromkeys(("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")),
        custom_hooks=hooks,
        launcher=options.launcher,
        env_cfg=dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0)),
        randomness=dict(seed=options.seed),
        default_scope="sslseg",
        experiment_name=name,
        cfg=dict(model_wrapper_cfg=wrapper(config)) if is_distributed() else None,
    )
    scratch = Path(tempfile.mkdtemp(prefix="sslseg-"))
    try:
        runner = QuietRunner(logger, work_dir=str(scratch), **arguments)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return Training(runner, checkpoints, monitor, stop, loader, scratch)


def checkpoint_meta(split: Split, config: Any) -> dict[str, Any]:
    """Return a checkpoint's metadata; without paths, so that equal runs give equal files."""
    return dict(
        method=config.method.type,
        config=config.pretty_text,
        dataset=split.dataset.content(),
        split_sha256=split.sha256,
        seed=config.seed,
        program_version=__version__,
    )


class QuietRunner(Runner):
    """mmengine's Runner with our own logger."""

    def __init__(self, logger: MMLogger, **arguments: Any) -> None:
        self._quiet_logger = logger
        super().__init__(**arguments)

    def build_logger(self, *arguments: Any, **keywords: Any) -> MMLogger:
        return self._quiet_logger


def quiet_logger(name: str, path: Path | None) -> MMLogger:
    """Return mmengine's current logger: into a file, never to the terminal."""
    main = is_main_process()
    logger = MMLogger.get_instance(name, log_level="INFO", log_file=str(path) if path and main else None, file_mode="a")
    logger.handlers = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
    return logger


def stream_loader(split: Split, config: Any, model: Any, pseudo_masks: PseudoMasks | None) -> DataLoader:
    """Return the endless loader of the streams and views that the method reads; each rank loads its part of a batch."""
    streams = {name: split.samples(name) for name in model.views}
    if pseudo_masks is not None:
        streams = {
            name: [sample for sample in samples if sample.id not in pseudo_masks.left_out]
            for name, samples in streams.items()
        }
    for name, samples in streams.items():
        if not samples:
            raise UserError(
                f"the split has no {name} images, which {config.method.type} needs; make another with `sslseg split`"
            )
    total, world_size = batch_counts(config, streams), get_world_size()
    for name, count in total.items():
        if count % world_size:
            raise UserError(
                f"{count} {name} images per batch cannot be divided among {world_size} ranks; change --batch-size"
            )
    mean = model.student.data_preprocessor.mean.flatten().tolist()
    views = {name: {view: transforms_of(view, config) for view in names} for name, names in model.views.items()}
    dataset = StreamDataset(
        streams,
        description=split.dataset,
        views=views,
        crop=tuple(config.data.crop),
        scale=tuple(config.data.scale),
        flip=config.data.flip,
        rotation=config.data.get("rotation", 0.0),
        cat_max_ratio=config.data.cat_max_ratio,
        image_mean=mean[::-1],  # images are BGR until the preprocessor turns them
        seed=config.seed,
        pseudo_masks=pseudo_masks if model.needs_pseudo_masks else None,
    )
    counts = [count // world_size for count in total.values()]
    return train_loader(
        dataset, counts, seed=config.seed, workers=config.data.workers, rank=get_rank(), world_size=world_size
    )


def transforms_of(view: str, config: Any) -> Any:
    """Return the transforms of a view; those of ``strong`` also for ``strong_2``, unless the config has that view itself."""
    return config.views[view if view in config.views else re.sub(r"_[0-9]+$", "", view)]


def validation(split: Split, config: Any) -> dict[str, Any]:
    """Return the Runner's arguments for validation under the config's protocol."""
    hidden = hidden_samples(split, config.data.get("hidden", 0))
    loop = dict(
        type=ScoreLoop,
        protocol=Protocol(**config.evaluation),
        classes=split.dataset.classes,
        ignore_index=ignore_value(split.dataset.num_classes),
        hidden=score_loader(hidden, split, config) if hidden else None,
    )
    loader = score_loader(split.samples("val"), split, config)
    return dict(val_dataloader=loader, val_cfg=loop, val_evaluator={})


def score_loader(samples: Sequence[Sample], split: Split, config: Any) -> DataLoader:
    """Return this rank's part of images with their labels."""
    dataset = ImageDataset(samples, description=split.dataset, labeled=True)
    # mmengine gathers results image by image, one of each rank.
    indices = list(range(get_rank(), len(dataset), get_world_size()))
    batches = [indices[start : start + VALIDATION_BATCH] for start in range(0, len(indices), VALIDATION_BATCH)]
    return image_loader(dataset, batches, workers=config.data.workers)


def hidden_samples(split: Split, number: int) -> list[Sample]:
    """Return evenly spaced unlabeled images that have a mask, ``number`` of them or as many as there are.

    Raises:
        UserError: images are asked for, but none has a mask.
    """
    known = [sample for sample in split.samples("unlabeled") if sample.mask is not None] if number else []
    if number and not known:
        raise UserError("data.hidden asks for labels of unlabeled images, but none has a mask; set it to 0")
    return [known[index] for index in np.linspace(0, len(known) - 1, min(number, len(known))).round().astype(int)]


def optim_wrapper(config: Any) -> dict[str, Any]:
    """Return the config of mmengine's optimizer wrapper."""
    wrapper = dict(type="OptimWrapper", optimizer=config.optimizer)
    if config.get("paramwise"):
        wrapper["paramwise_cfg"] = config.paramwise
    if config.get("optimizers"):
        wrapper |= dict(constructor=JointOptimizerConstructor.__name__, parts=config.optimizers)
    if config.amp:
        if get_device() != "cuda":
            raise UserError(f"--amp needs a GPU, but this run is on {get_device()}; leave it out")
        wrapper["type"] = "AmpOptimWrapper"
    return wrapper


def param_schedulers(config: Any, iterations: int) -> list[dict[str, Any]]:
    """Return a linear warm-up over a fraction of training, then polynomial decay to 0 (a power of 0 is constant)."""
    warmup = round(config.schedule.warmup * iterations)
    schedulers = [
        dict(
            type="PolyLR",
            power=config.schedule.power,
            eta_min=0.0,
            begin=warmup if warmup > 1 else 0,
            end=iterations,
            by_epoch=False,
        )
    ]
    if warmup > 1:
        schedulers.insert(0, dict(type="LinearLR", start_factor=0.01, begin=0, end=warmup, by_epoch=False))
    return schedulers


def wrapper(config: Any) -> dict[str, Any]:
    """Return the config of the distributed wrapper, on GPUs and CPUs."""
    more = {} if get_device() == "cuda" else dict(device_ids=None)
    return dict(
        type="MMDistributedDataParallel",
        broadcast_buffers=False,
        find_unused_parameters=config.get("find_unused_parameters", False),
        **more,
    )
