"""The pseudo-label worker: predictions of a model, image by image, into a prediction store."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import barrier, get_rank, get_world_size

from sslseg.artifacts import Model, build_method
from sslseg.data.dataset import FixedBatches, ImageDataset, image_loader
from sslseg.data.description import DatasetDescription, Sample
from sslseg.data.files import read_image
from sslseg.data.labels import ignore_value
from sslseg.data.layouts.base import image_files
from sslseg.distributed import on_main
from sslseg.errors import Interrupted, UserError
from sslseg.figures import heat, overlay, save_image, save_palette_png
from sslseg.files import sha256_file
from sslseg.functional.confidence import confidence, normalized_entropy
from sslseg.inference import Prediction, Protocol, predict_all
from sslseg.progress import track
from sslseg.registry import METHODS, import_mmseg
from sslseg.store import StoreHeader, StoreReader, StoreWriter
from sslseg.store.format import DIRECT_MASKS, FLAW, FLAW_MAPS, MASKS, MODEL_MASKS, SCORE_KINDS
from sslseg.store.reliability import PERCENTILE, mark_reliable

SCORES = {"confidence": confidence, "entropy": normalized_entropy}
MODELS = "models"
# What --scores may name, and the kinds of maps that this stores.
NAMES = {name: (name,) for name in SCORES} | {FLAW: FLAW_MAPS, MODELS: MODEL_MASKS}


@dataclass(frozen=True)
class PseudolabelOptions:
    """What goes into a store, and how it is predicted; by default all scores that the model gives.

    ``reliability`` is a percentile of the entropy, such as ``q80``: pixels above it are marked as unreliable.
    ``decouple`` is the number of most similar labelled images that each image is mixed with; 0: none.
    """

    scores: tuple[str, ...] | None = None
    protocol: Protocol = field(default_factory=Protocol)
    batch_size: int = 4
    workers: int = 2
    shard: tuple[int, int] = (0, 1)
    resume: bool = False
    reliability: str | None = None
    decouple: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.scores or ()) - set(NAMES))
        if unknown:
            raise UserError(f"--scores {','.join(unknown)} is unknown; use {', '.join(NAMES)}")
        if self.protocol.mode == "center-crop":
            raise UserError("a store holds whole masks, so center-crop cannot make one; use --mode whole or slide")
        if self.reliability is not None:
            found = PERCENTILE.fullmatch(self.reliability)
            if found is None or not 0 < float(found[1]) <= 100:
                raise UserError(
                    f"--reliability {self.reliability!r} is not understood; write a percentile between q0 and q100, such as q80"
                )
            if self.scores is not None and "entropy" not in self.scores:
                raise UserError("--reliability goes by the entropy; let --scores name it, too")
            if self.shard != (0, 1):
                raise UserError(
                    "--reliability needs the pixels of all shards; join them with `sslseg merge`, then run"
                    " `sslseg pseudolabel` again with --resume, --reliability and --out of the merged store"
                )


def pseudolabel(
    model: Model,
    samples: Sequence[Sample],
    path: Path,
    options: PseudolabelOptions,
    *,
    description: DatasetDescription,
    provenance: dict[str, Any],
    references: Sequence[Sample] = (),
) -> Path:
    """Predict ``samples`` into the store at ``path`` and return it; every rank takes its batches, rank 0 finishes.

    ``references`` are the labelled images that ``options.decouple`` mixes with.

    Prediction and writing overlap: the writer compresses on a thread of its own. Which images share a batch is fixed
    by their order alone, so ranks, shards and resumed runs write what a single uninterrupted process would.

    Raises:
        UserError: a store is there already, ``resume`` meets one of other provenance, or the model's method does not mix.
    """
    if not samples:
        raise UserError("there is no image to predict; choose another --subset or --images folder")
    shard, shards = options.shard
    batches = list(FixedBatches(len(samples), options.batch_size, rank=shard, world_size=shards))
    if not batches:
        raise UserError(
            f"--shard {shard}/{shards} gets no image: there are {len(samples)} in batches of {options.batch_size}"
        )
    if options.resume and path.exists():
        _mark(path, options)
        return path
    kinds = stored_kinds(model, options.scores) + ((DIRECT_MASKS,) if options.decouple else ())
    if options.decouple and not METHODS.get(model.meta["method"]).mixes:
        raise UserError(
            f"--decouple: method {model.meta['method']} has not learned from mixtures of images; leave it out"
        )
    positions = [index for batch in batches for index in batch]
    open_writer = functools.partial(
        StoreWriter,
        path,
        header=make_header(model, options, provenance, total=len(samples)),
        ids=[samples[index].id for index in positions],
        positions=positions,
        kinds=kinds,
        resume=options.resume,
    )
    # Rank 0 makes the folder of segments, the others join.
    writer = on_main(open_writer) or open_writer(rank=get_rank())
    # Nobody writes before every rank has read which ids are done, or they would share out different lists.
    barrier()
    with _told_how_to_resume(path), writer:
        left = [batch for batch in batches if any(samples[index].id not in writer.done for index in batch)]
        mine = left[get_rank() :: get_world_size()]
        for sample, prediction in _predict(model, samples, mine, options, description, references):
            writer.add(sample["data_samples"].sample_id, **_arrays(prediction, kinds))
    barrier()
    on_main(writer.finalize)
    _mark(path, options)
    return path


def _mark(path: Path, options: PseudolabelOptions) -> None:
    if options.reliability is not None:
        on_main(functools.partial(mark_reliable, path, options.reliability))


@contextlib.contextmanager
def _told_how_to_resume(path: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"{path} is unfinished, what was predicted is kept; the same command with --resume goes on"
        ) from error


def _predict(
    model: Model,
    samples: Sequence[Sample],
    batches: list[list[int]],
    options: PseudolabelOptions,
    description: DatasetDescription,
    references: Sequence[Sample],
) -> Iterator[tuple[dict[str, Any], Prediction]]:
    if not batches:
        return
    dataset = ImageDataset(samples, description=description, labeled=False)
    loader = image_loader(dataset, batches, workers=options.workers)
    method = build_method(model)
    if options.decouple:
        labeled = ImageDataset(references, description=description, labeled=False)
        predictor = method.guided_predictor(options.protocol, labeled, number=options.decouple)
    else:
        predictor = method.predictor(options.protocol)
    predictions = predict_all(predictor, loader)
    yield from track(predictions, "predict", total=sum(map(len, batches)))


def stored_kinds(model: Model, scores: Sequence[str] | None) -> tuple[str, ...]:
    """Return the kinds of maps that a store of ``model`` gets; raise UserError if it cannot give one that was asked for."""
    import_mmseg()
    given = (*SCORES, *METHODS.get(model.meta["method"]).maps)
    names = [name for name in NAMES if name != MODELS and set(NAMES[name]) <= set(given)] if scores is None else scores
    for name in names:
        if not set(NAMES[name]) <= set(given):
            raise UserError(f"--scores {name}: a model of method {model.meta['method']} does not give it; leave it out")
    return (MASKS, *(kind for name in names for kind in NAMES[name]))


def _arrays(prediction: Prediction, kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the maps of one image on the CPU."""
    scores = {kind: SCORES[kind](prediction.probabilities[None])[0] for kind in kinds if kind in SCORES}
    others = {kind: found for kind, found in prediction.maps.items() if kind in kinds}
    return dict(
        mask=prediction.mask.cpu().numpy(), **{kind: found.cpu().numpy() for kind, found in (scores | others).items()}
    )


def make_header(model: Model, options: PseudolabelOptions, provenance: dict[str, Any], *, total: int) -> StoreHeader:
    """Return the header of a store that ``model`` makes."""
    told = dict(
        checkpoint=str(model.checkpoint.resolve()),
        step=model.meta["iter"],
        protocol=str(options.protocol),
        batch_size=options.batch_size,
        **(dict(decouple=options.decouple) if options.decouple else {}),
        **provenance,
    )
    dataset = model.meta["dataset"]
    return StoreHeader(
        classes=tuple(dataset["classes"]),
        palette=tuple((color[0], color[1], color[2]) for color in dataset["palette"]),
        ignore_index=ignore_value(len(dataset["classes"])),
        total=total,
        method=model.meta["method"],
        checkpoint_sha256=sha256_file(model.checkpoint),
        config_sha256=hashlib.sha256(model.meta["config"].encode()).hexdigest(),
        split_sha256=model.meta["split_sha256"],
        provenance=json.dumps(told, sort_keys=True),
        shard="{}/{}".format(*options.shard),
    )


def export_png(store: StoreReader, samples: Sequence[Sample], folder: Path) -> None:
    """Write ``masks/<id>.png`` (class indices with a palette), ``overlays/<id>.jpg`` and a heat map of each stored score."""
    by_id = {sample.id: sample for sample in samples}
    for name in track(store.ids, "export", total=len(store)):
        mask = store.mask(name)
        save_palette_png(folder / "masks" / f"{name}.png", mask, store.palette)
        image = read_image(by_id[name].image)
        save_image(folder / "overlays" / f"{name}.jpg", overlay(image, mask, store.palette))
        for kind in store.kinds:
            if kind in SCORE_KINDS:
                save_image(folder / kind / f"{name}.jpg", heat(image, store.score(kind, name)))
            elif kind != MASKS:
                save_palette_png(folder / kind / f"{name}.png", store.stored(kind, name), store.palette)


def folder_samples(folder: Path) -> list[Sample]:
    """Return every image under ``folder``; raise UserError if there is none."""
    images = image_files(folder) if folder.is_dir() else {}
    if not images:
        raise UserError(f"--images {folder} holds no image; give a folder of images")
    return [Sample(name, path) for name, path in images.items()]
