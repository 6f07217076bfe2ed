"""The refinement worker: from a store and the model that made it to a better model and the next store."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sslseg.artifacts import Model, check_classes, find_model, identify, load_model
from sslseg.config import config_names
from sslseg.data.pseudo import PseudoMasks
from sslseg.distributed import launch
from sslseg.errors import IncompatibleError, UserError
from sslseg.inference import Protocol
from sslseg.progress import note
from sslseg.pseudolabel import SCORES, PseudolabelOptions, pseudolabel
from sslseg.run import Run
from sslseg.split import Split
from sslseg.store import StoreReader
from sslseg.store.keep import resolve
from sslseg.train import TrainOptions, train

METHOD, STUDENT = "three-stage", "self-training"


@dataclass(frozen=True)
class Input:
    """A store of pseudo-masks, and the model that made it."""

    store: StoreReader
    model: Model

    @functools.cached_property
    def config(self) -> Any:
        """The config of the run that trained the model."""
        from mmengine.config import Config

        return Config.fromstring(self.model.meta["config"], file_format=".py")

    @property
    def next_stage(self) -> int:
        """One more than the stage that made the store; what was not refined is stage 1."""
        return int(self.config.method.get("stage", 1)) + 1


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


def method_of(stage: int | None) -> str:
    """Return the method that refines: a stage's, or that of a student without stages."""
    return STUDENT if stage is None else METHOD


def run_name(given: Input, stage: int | None) -> str:
    """Return the name of a run directory: that of the run before it, with the stage (or ``student``) for its method."""
    before = given.model.run.folder.absolute().name if given.model.run is not None else given.model.checkpoint.stem
    methods = "|".join({re.escape(name.split("/")[0]) for name in config_names()})
    rest = re.sub(rf"^(stage[0-9]+|student|{methods})-", "", before)
    return f"student-{rest}" if stage is None else f"stage{stage}-{rest}"


def refine(
    given: Input,
    split: Split,
    folder: Path,
    options: TrainOptions,
    *,
    stage: int | None,
    keep: Sequence[str] = (),
    weight: str | None = None,
    which: str = "best",
    workers: int = 2,
) -> tuple[Run, Path]:
    """Train on the masks of ``given`` into ``folder``; return the run and the store of its predictions.

    The network, batches and schedule are those of the run that made the store, unless ``options`` say otherwise. The new
    store holds the same images as the old one, predicted in the same way.

    Args:
        stage: of three-stage self-training; None: a fresh student of the stored masks (``methods.self_training``).
        keep: filters on the stored masks (``sslseg.store.keep``).
        weight: the score by which a student weights each stored pixel.
        which: the checkpoint, ``best`` or ``last``, that predicts the new store.

    Raises:
        UserError: the store does not cover the split, or any input does not fit.
    """
    from mmengine.dist import barrier

    launch(options.launcher, options.device)
    store = given.store
    check_classes(given.model, split.dataset.classes, where=f"dataset {split.dataset.name!r}")
    check_images(store, split, labeled=stage is not None)
    filters = resolve(keep, store)
    for kept in filters:
        note(f"--keep {kept.text}: {kept.share:.1%} of the stored pixels")
    masks = PseudoMasks(store, filters, weight=weight)
    told = dict(stage=stage, store=str(store.path.resolve()), pseudo_masks=masks.to_dict())
    assignments = options.assignments if stage is None else {"method.stage": stage} | options.assignments
    stage_options = replace(options, method=method_of(stage), assignments=assignments)
    run = train(split, folder, stage_options, base=given.config, pseudo_masks=masks, notes=told)
    target = run.stores / store.path.name
    if options.dry_run:
        return run, target
    barrier()
    by_id = {sample.id: sample for sample in split.samples("all")}
    provenance = store.provenance
    pseudolabel(
        load_model(run.checkpoint(which)),
        [by_id[name] for name in store.ids],
        target,
        PseudolabelOptions(
            scores=tuple(kind for kind in store.kinds if kind in SCORES),
            protocol=Protocol.parse(provenance.get("protocol", "whole")),
            batch_size=provenance.get("batch_size", PseudolabelOptions.batch_size),
            workers=workers,
            resume=options.resume,
        ),
        description=split.dataset,
        provenance=dict(
            subset=provenance.get("subset"), data=split.dataset.root, stage=stage, learned_from=masks.to_dict()
        ),
    )
    return run, target


def check_images(store: StoreReader, split: Split, *, labeled: bool) -> None:
    """Refuse a store of another split or of too few images; tell when ``labeled`` images have no stored mask."""
    if store.header.split_sha256 != split.sha256:
        raise IncompatibleError(
            f"store {store.path} was made with another split; give --split with the one it belongs to"
        )
    known = {sample.id for sample in split.samples("all")}
    strange = next((name for name in store.ids if name not in known), None)
    if strange is not None:
        raise UserError(
            f"store {store.path} holds {strange!r}, which is no image of the split; make one with --subset train"
        )
    for subset in ("unlabeled", "labeled"):
        samples = split.samples(subset)
        missing = [sample.id for sample in samples if sample.id not in store]
        if missing and subset == "unlabeled":
            raise UserError(
                f"store {store.path} lacks {len(missing)} of {len(samples)} unlabelled images, such as {missing[0]!r};"
                " make one with `sslseg pseudolabel --subset train`"
            )
        if missing and labeled:
            note(
                f"the store has no masks of {len(missing)} labelled images, on which Task 2 therefore learns nothing;"
                " the paper stores them, too: `sslseg pseudolabel --subset train`"
            )
