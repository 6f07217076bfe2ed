"""The whole config of a training: a file, then flags, then ``--set``; fitted to a split."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from sslseg.config.assignments import apply_assignments
from sslseg.config.auto import is_auto, settle
from sslseg.config.files import load_method, load_model, load_named, merge_imports, method_class
from sslseg.config.fit import apply_pretrained, fit_model
from sslseg.config.lengths import rescale, resolve, snapshot_iterations
from sslseg.config.upgrade import upgrade_assignments, upgrade_config
from sslseg.data.labels import ignore_value
from sslseg.errors import UserError
from sslseg.plugins import AUTO
from sslseg.settings import complete
from sslseg.splits.split import Split

CROP_MULTIPLE, CROP_RANGE = 32, (96, 512)
SECTIONS = ("model", "method", "schedule", "optimizer", "data", "views", "evaluation")
INHERITED = (
    "model",
    "schedule",
    "optimizer",
    "paramwise",
    "data",
    "evaluation",
)  # by a refining run from the one before


@dataclass(frozen=True)
class TrainOptions:
    """What the user asked for; None leaves the config's value."""

    method: str = AUTO  # what it stands for, the split decides
    config: str | None = None
    model: str | None = None
    iterations: int | None = None
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


def build_config(split: Split, options: TrainOptions, *, base: Any = None, left_out: int = 0) -> Any:
    """Return the whole config, every setting of the method and every length among its values.

    Args:
        base: config of an earlier run; unless the options name a config, its ``INHERITED`` keys win over the file's.
        left_out: number of unlabeled images that are not learned from, and so are not part of an epoch.

    Raises:
        UserError: the file, the flags and the split do not fit each other.
    """
    if is_auto(options):
        options, _ = settle(options, split)
    assignments = upgrade_assignments(options.assignments)
    config = upgrade_config(load_named(options.config) if options.config else load_method(options.method))
    own_schedule = copy.deepcopy(config.get("schedule") or {})
    if base is not None and options.config is None:
        for key in INHERITED:
            config.pop(key, None)  # a run without `paramwise` had one rate for all
            if key in base:
                config[key] = copy.deepcopy(base[key])
        merge_imports(config, base)
    for key in SECTIONS:
        if key not in config:
            raise UserError(
                f"config {config.filename} has no {key!r}; base it on 'sslseg::supervised/default.py' or another shipped one"
            )
    if options.model is not None:
        chosen = load_model(options.model)
        config.model = chosen.model
        merge_imports(config, chosen)
    apply_assignments(config, _flags(options))
    if config.data.get("crop") is None:
        config.data.crop = _default_crop(split)
    cls = method_class(config)
    config.method = _settings(cls, config)
    config.model = _fitted(config.model, split)
    apply_assignments(config, assignments)
    config.method = _settings(cls, config)
    config.model = apply_pretrained(config.model, options.pretrained)
    for name in cls.segmentors:
        _set_segmentor(config, name, split, options.pretrained)
    if cls.optimizers or config.get("optimizers"):
        config.optimizers = _optimizers(cls, config)
    _check(config)
    epochs = None if "schedule.iterations" in assignments else options.epochs
    sizes = split.sizes | dict(unlabeled=split.sizes["unlabeled"] - left_out)
    lengths = resolve(config, sizes, cls.views, epochs=epochs)
    if not isinstance(lengths.iterations, int) or lengths.iterations < 1:
        raise UserError(f"schedule.iterations is {lengths.iterations!r}; give at least 1 with --iterations")
    config.schedule.update(iterations=lengths.iterations, iterations_per_epoch=lengths.iterations_per_epoch)
    snapshot_iterations(config.schedule)  # refuses what is not a fraction, before anything is built
    stated_for = config.schedule.pop("stated_for", None) or own_schedule.get("stated_for")
    stated_for = stated_for or resolve(config, sizes, cls.views, schedule=own_schedule).iterations
    rescale(config, cls, stated_for, literal=assignments)
    config.seed = options.seed
    config.amp = options.amp
    return config


def _flags(options: TrainOptions) -> dict[str, Any]:
    flags = {
        "schedule.iterations": options.iterations,
        "data.batch_size": options.batch_size,
        "data.unlabeled_batch_size": options.unlabeled_batch_size,
        "data.crop": options.crop,
        "data.workers": options.workers,
        "optimizer.lr": options.lr,
        "schedule.val_interval": options.val_interval,
    }
    return {key: value for key, value in flags.items() if value is not None}


def _settings(cls: type, config: Any) -> Any:
    """Return ``config.method`` with every setting of its class, the defaults where the file says nothing."""
    from mmengine.config import ConfigDict

    values = dict(config.method)
    name = values.pop("type")
    return ConfigDict(type=name, **complete(cls, values))


def _fitted(model: Any, split: Split) -> Any:
    classes = split.dataset.num_classes
    return fit_model(model, num_classes=classes, ignore_index=ignore_value(classes))


def _set_segmentor(config: Any, name: str, split: Split, pretrained: str) -> None:
    """Replace the name of a further model of the method by its config, fitted as the first one's is."""
    value = config.method[name]
    if value is None:
        return
    if isinstance(value, str):
        chosen = load_model(value)
        merge_imports(config, chosen)
        value = chosen.model
    config.method[name] = apply_pretrained(_fitted(value, split), pretrained)


def _optimizers(cls: Any, config: Any) -> dict[str, Any]:
    """Return the optimizers of the method's parts: its class's, changed as the config says."""
    found = {name: dict(default) for name, default in cls.optimizers.items()}
    for name, changes in (config.get("optimizers") or {}).items():
        found[name] = dict(changes) if "type" in changes else found.get(name, {}) | dict(changes)
        if "type" not in found[name]:
            raise UserError(f"optimizers.{name} has no type; name an optimizer of torch.optim, such as type='Adam'")
    return found


def _check(config: Any) -> None:
    data = config.data
    if not isinstance(data.batch_size, int) or data.batch_size < 1:
        raise UserError(f"data.batch_size is {data.batch_size!r}; give at least 1 with --batch-size")
    if min(data.crop) < CROP_MULTIPLE:
        raise UserError(f"data.crop is {tuple(data.crop)}; give at least {CROP_MULTIPLE} pixels a side with --crop")
    if not config.optimizer.lr > 0:
        raise UserError(f"optimizer.lr is {config.optimizer.lr!r}; give a positive --lr")


def _default_crop(split: Split) -> tuple[int, int]:
    """Return half of the first labeled image's short side, a multiple of 32 between 96 and 512."""
    from sslseg.data.reading import read_image

    side = min(read_image(split.samples("labeled")[0].image).shape[:2]) // 2
    side = min(max(side // CROP_MULTIPLE * CROP_MULTIPLE, CROP_RANGE[0]), CROP_RANGE[1])
    return side, side
