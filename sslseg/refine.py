"""The refinement worker: from a store and the model that made it to a better model and the next store."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict

from sslseg.artifacts.checkpoint import BEST
from sslseg.artifacts.find import Model, check_classes, find_model, identify, load_model
from sslseg.artifacts.run import Run
from sslseg.config.assignments import apply_assignments
from sslseg.config.build import TrainOptions
from sslseg.config.files import load_method, load_named, method_class, unscoped
from sslseg.config.files import load_model as load_model_config
from sslseg.config.fit import RANDOM, weights_source, without_pretrained
from sslseg.config.lengths import snapshot_iterations
from sslseg.data.precision import PrecisionFilter, precision_filter
from sslseg.data.pseudo_masks import PseudoMasks
from sslseg.distributed import launch
from sslseg.errors import IncompatibleError, UserError
from sslseg.inference import Protocol
from sslseg.plugins import AUTO, method_names, method_of
from sslseg.progress import note
from sslseg.pseudolabel import SCORES, PseudolabelOptions, pseudolabel
from sslseg.settings import settings_of
from sslseg.splits.split import Split
from sslseg.store import StoreReader
from sslseg.store.filters import MaskFilter, resolve
from sslseg.store.format import AGREEMENT, RELIABLE
from sslseg.store.ranking import keep_images
from sslseg.train import PRETRAINED_BY_RUN, PRETRAINED_FILE, train

STAGE = "stage"  # the setting of methods that refine in numbered stages


@dataclass(frozen=True)
class Input:
    """A store of pseudo-masks, and the model that made it."""

    store: StoreReader
    model: Model

    @property
    def next_stage(self) -> int:
        """One more than the stage of the model; a model that was not refined is stage 1."""
        return int(self.model.config.method.get(STAGE, 1)) + 1


@dataclass(frozen=True)
class Plan:
    """The method that refines, its class, and its stage where it has stages."""

    method: str
    cls: Any
    stage: int | None


def find_input(source: str | Path) -> Input:
    """Return the store at ``source``, or the newest one of the run there, with the model that made it."""
    artifact = identify(source)
    if artifact.kind == "store":
        path = artifact.path
    elif artifact.kind == "split":
        raise UserError(f"{source} is a split; give a store of `sslseg pseudolabel`, or a run that has one")
    else:
        run = Run(artifact.path) if artifact.kind == "run" else load_model(artifact.path).run
        stores = sorted(run.stores.glob("*.h5"), key=lambda path: path.stat().st_mtime_ns) if run is not None else []
        if not stores:
            raise UserError(f"{source} has no store yet; make one with `sslseg pseudolabel {source} --subset train`")
        path = stores[-1]
    return Input(StoreReader(path), find_model(path))


def plan(
    given: Input,
    *,
    method: str | None = None,
    config: str | None = None,
    stage: int | None = None,
    weight: str | None = None,
) -> Plan:
    """Choose how to learn from a store.

    The method that made the store names the methods that can (``SemiSegmentor.refiners``); the first that fits is taken. A
    stage needs a method with stages; a weight, or a store in which unreliable pixels are marked, a method that takes weights.

    Args:
        method, config: take this one instead.
        stage: by default one more than that of the model.

    Raises:
        UserError: no method fits.
    """
    if stage is not None and weight is not None:
        raise UserError("--weight needs a method without stages; leave --stage or --weight out")
    marked = stage is None and given.store.has(RELIABLE)
    chosen = (method if method != AUTO else None) or (method_of(config) if config else None)
    names = given.model.method.refiners if chosen is None else (chosen,)
    for name in names:
        cls = method_class(load_named(config) if config else load_method(name))
        if not cls.needs_pseudo_masks:
            raise UserError(f"method {name!r} does not learn from a store; use `sslseg train`")
        staged = STAGE in settings_of(cls)
        can_weight = cls.takes_weights or not (weight is not None or (marked and chosen is None))
        if can_weight and (staged or stage is None):
            return Plan(name, cls, (stage or given.next_stage) if staged else None)
    reason = (
        f"--stage {stage}" if stage is not None else f"--weight {weight}" if weight is not None else "--reliability"
    )
    raise UserError(f"{reason}: {' or '.join(names)} cannot use it; leave it out, or name another method with --method")


def run_name(given: Input, chosen: Plan) -> str:
    """Return the name of a run directory: that of the run before it, with the stage or the refining method for its method."""
    before = given.model.run.folder.absolute().name if given.model.run is not None else given.model.checkpoint.stem
    methods = "|".join(map(re.escape, method_names()))
    rest = re.sub(rf"^(stage[0-9]+|student|{methods})-", "", before)
    return f"{chosen.method if chosen.stage is None else f'stage{chosen.stage}'}-{rest}"


def initial_weights(given: Input, options: TrainOptions) -> str:
    """Return the ``--pretrained`` of a stage: by default the choice of the run before, for a backbone of the same config."""
    run = given.model.run
    if run is None or options.pretrained != "auto" or not same_backbone(given, options):
        return options.pretrained
    file = run.read().get(PRETRAINED_FILE)
    if file is not None and Path(file).is_file():
        return str(file)
    return "none" if sources(given)[-1] == RANDOM else "auto"


def same_backbone(given: Input, options: TrainOptions) -> bool:
    """Return whether a stage has the backbone of the run before, apart from what is named as pretrained."""
    before = given.model.config.model
    if options.model is None and options.config is None:
        named = before
    else:
        named = load_model_config(options.model).model if options.model else load_named(str(options.config)).model
    config = ConfigDict(model=named.to_dict())
    apply_assignments(config, {key: value for key, value in options.assignments.items() if key.startswith("model.")})
    now = without_pretrained(unscoped(config.model))
    return bool(now.backbone == without_pretrained(before).backbone)


def sources(given: Input) -> list[str]:
    """Return where the encoder weights of the runs before came from, from the first run to the one that made the store."""
    record = given.model.run.read() if given.model.run is not None else {}
    own = given.model.meta.get("pretrained", weights_source(given.model.config.model, "auto"))
    return record.get(PRETRAINED_BY_RUN, [own])


def refine(
    given: Input,
    split: Split,
    folder: Path,
    options: TrainOptions,
    *,
    stage: int | None = None,
    method: str | None = None,
    keep: Sequence[str] = (),
    images: float | None = None,
    precise: float | None = None,
    held_out: str | Path | None = None,
    weight: str | None = None,
    which: str = "best",
    workers: int = 2,
) -> tuple[Run, Path]:
    """Train on the masks of ``given`` into ``folder``; return the run and the store of its predictions.

    The network, its initial weights, batches and schedule are those of the run that made the store, unless ``options`` say
    otherwise. The record says with what weights each run began. The new store holds the same images as the old one,
    predicted in the same way.

    Args:
        stage, method: how to learn from the store; by default what ``plan`` chooses.
        keep: filters on the stored masks (``sslseg.store.filters``).
        images: the fraction of the unlabeled images, those of the highest agreement, that is learned from; None: all.
        precise, held_out: the fraction of accepted pixels that must be right on the labels of a store of held-out images; it
            gives each class its own threshold of confidence (``sslseg.data.precision``).
        weight: the score by which each stored pixel is weighted.
        which: the checkpoint, ``best`` or ``last``, that predicts the new store.

    Raises:
        UserError: the store does not cover the split, or any input does not fit.
    """
    from mmengine.dist import barrier

    launch(options.launcher, options.device)
    store = given.store
    chosen = plan(given, method=method, config=options.config, stage=stage, weight=weight)
    check_classes(given.model, split.dataset.classes, where=f"dataset {split.dataset.name!r}")
    check_images(store, split, labeled="train" in chosen.cls.views)
    filters: tuple[MaskFilter, ...] = resolve(keep, store)
    for kept in filters:
        note(f"--keep {kept.text}: {kept.share:.1%} of the stored pixels")
    if precise is not None or held_out is not None:
        filters = (*filters, choose_thresholds(store, split, precise, held_out))
    best = keep_images(images, store, split.unlabeled) if images is not None else None
    if best is not None:
        note(
            f"--keep-images {best.fraction:g}: {len(best.kept)} of {len(split.unlabeled)} unlabeled images, with an agreement"
            f" of {best.threshold:.4f} or more; the others are left out of training"
        )
        if best.tied:
            note(
                "images that are left out agree as much as the last ones that are kept, so their names decided; a model that predicts"
                " one class everywhere agrees with itself"
            )
    masks = PseudoMasks(store, filters, weight=weight, images=best)
    notes: dict[str, Any] = dict(store=str(store.path.resolve()), pseudo_masks=masks.to_dict(), store_checkpoint=which)
    stage_options = replace(options, method=chosen.method, pretrained=initial_weights(given, options))
    if chosen.stage is not None:
        notes[STAGE] = chosen.stage
        stage_options = replace(stage_options, assignments={f"method.{STAGE}": chosen.stage} | options.assignments)
    run = train(
        split,
        folder,
        stage_options,
        base=given.model.config,
        before=sources(given),
        pseudo_masks=masks,
        notes=notes,
    )
    target = run.stores / store.path.name
    if options.dry_run:
        return run, target
    barrier()
    checkpoint = run.checkpoint(which)
    if checkpoint.name == BEST:
        note(
            "the best checkpoint predicts the store: labels of validation images chose it; --checkpoint last uses none"
        )
    by_id = {sample.id: sample for sample in split.samples("all")}
    provenance = store.provenance
    model = load_model(checkpoint)
    pseudolabel(
        model,
        [by_id[name] for name in store.ids],
        target,
        PseudolabelOptions(
            scores=tuple(kind for kind in store.kinds if kind in SCORES),
            protocol=Protocol.parse(provenance.get("protocol", "whole")),
            batch_size=provenance.get("batch_size", PseudolabelOptions.batch_size),
            workers=workers,
            resume=options.resume,
            agreement=AGREEMENT in store.image_scores and bool(snapshot_iterations(model.config.schedule)),
        ),
        description=split.dataset,
        provenance=dict(
            subset=provenance.get("subset"), data=split.dataset.root, stage=chosen.stage, learned_from=masks.to_dict()
        ),
    )
    return run, target


def choose_thresholds(
    store: StoreReader, split: Split, precise: float | None, held_out: str | Path | None
) -> PrecisionFilter:
    """Return the filter of ``--keep-precise`` and ``--held-out``, and say what it does."""
    if precise is None or held_out is None:
        missing = "--held-out STORE of labeled images apart" if held_out is None else "--keep-precise, such as 0.9"
        raise UserError(f"thresholds by class need both --keep-precise and --held-out; add {missing}")
    apart = StoreReader(held_out)
    samples = {sample.id: sample for sample in split.samples("all")}
    learned = {sample.id for sample in split.samples("train")}
    found = precision_filter(store, apart, samples, split.dataset, precision=precise, learned=learned)
    note(
        f"--keep-precise {precise:g}: {found.share:.1%} of the stored pixels; confidence by class: {found.described(split.dataset.classes)}"
    )
    if set(apart.ids) & set(split.val):
        note(
            "the labels of validation images chose these thresholds: their scores are too good by that; compare on others"
        )
    return found


def check_images(store: StoreReader, split: Split, *, labeled: bool) -> None:
    """Refuse a store of another split or of too few images; note when ``labeled`` images have no stored mask."""
    if store.header.split_sha256 != split.sha256:
        raise IncompatibleError(
            f"store {store.path} was made with another split; give --split with the one it belongs to"
        )
    known = {sample.id for sample in split.samples("all")}
    strange = next((name for name in store.ids if name not in known), None)
    if strange is not None:
        raise UserError(
            f"store {store.path} holds {strange!r}, which is not an image of the split; make one with --subset train"
        )
    for subset in ("unlabeled", "labeled"):
        samples = split.samples(subset)
        missing = [sample.id for sample in samples if sample.id not in store]
        if missing and subset == "unlabeled":
            raise UserError(
                f"store {store.path} lacks {len(missing)} of {len(samples)} unlabeled images, such as {missing[0]!r};"
                " make one with `sslseg pseudolabel --subset train`"
            )
        if missing and labeled:
            note(
                f"the store has no masks of {len(missing)} labeled images, so nothing is learned from stored masks there;"
                " to store them, too: `sslseg pseudolabel --subset train`"
            )
