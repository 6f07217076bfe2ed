"""The pseudo-label worker: predictions of a model, image by image, into a prediction store."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import barrier, get_rank, get_world_size

from sslseg.artifacts.find import Model, build_method, find_snapshots
from sslseg.data.dataset import FixedBatches, ImageDataset, image_loader
from sslseg.data.description import DatasetDescription, Sample
from sslseg.data.labels import ignore_value
from sslseg.data.layouts.base import image_files
from sslseg.data.reading import read_image
from sslseg.distributed import on_main
from sslseg.errors import Interrupted, UserError
from sslseg.evaluation.figures import heat, overlay, save_image, save_palette_png
from sslseg.files import sha256_file
from sslseg.functional.confidence import confidence, normalized_entropy
from sslseg.inference import Prediction, Predictor, Protocol
from sslseg.inference.agreement import Agreement
from sslseg.progress import track
from sslseg.store import StoreHeader, StoreReader, StoreWriter
from sslseg.store.format import AGREEMENT, BUILT_IN, MASKS, MapKind
from sslseg.store.reliability import PERCENTILE, mark_reliable

SCORES = {"confidence": confidence, "entropy": normalized_entropy}


@dataclass(frozen=True)
class PseudolabelOptions:
    """What goes into a store, and how it is predicted.

    Attributes:
        scores: names of what is stored beside the masks (``map_names``); None: all that the model gives by default.
        predictor: a name among the method's ``predictors``; None: its first one.
        references: how many labeled images each image is compared with; None: the predictor's default.
        agreement: whether images get a score: how well the run's snapshots agree with its last model.
        reliability: a percentile of the entropy, such as ``q80``: pixels above it are marked as unreliable.
    """

    scores: tuple[str, ...] | None = None
    protocol: Protocol = field(default_factory=Protocol)
    batch_size: int = 4
    workers: int = 2
    shard: tuple[int, int] = (0, 1)
    resume: bool = False
    agreement: bool = False
    reliability: str | None = None
    predictor: str | None = None
    references: int | None = None

    def __post_init__(self) -> None:
        if self.protocol.mode == "center-crop":
            raise UserError("a store holds whole masks, so center-crop cannot make one; use --mode whole or slide")
        if self.reliability is not None:
            found = PERCENTILE.fullmatch(self.reliability)
            if found is None or not 0 < float(found[1]) <= 100:
                raise UserError(
                    f"--reliability {self.reliability!r} is not a percentile; write one between q0 and q100, such as q80"
                )
            if self.scores is not None and "entropy" not in self.scores:
                raise UserError("--reliability needs the entropy; add it to --scores")
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
    labeled: Sequence[Sample] = (),
) -> Path:
    """Predict ``samples`` into the store at ``path`` and return it; every rank predicts its batches, rank 0 finishes.

    Prediction and writing overlap: the writer compresses on its own thread. Which images share a batch is fixed by their
    order alone, so ranks, shards and resumed runs write what a single uninterrupted process would.

    Args:
        provenance: further entries of the store's provenance.
        labeled: the labeled images, for a predictor that compares with them.

    Raises:
        UserError: a store is there already, ``resume`` finds one of other provenance, or the model cannot give what is asked for.
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
        if options.agreement and AGREEMENT not in StoreReader(path).image_scores:
            raise UserError(f"store {path} is finished and holds no agreement; write another with --out, or remove it")
        _mark(path, options)
        return path
    predictor = predictor_class(model, options)
    kinds = stored_kinds(predictor, options.scores)
    voters = find_snapshots(model) if options.agreement else None
    if voters is not None:
        snapshots, last = ([one.meta["iteration"] for one in voters[0]], voters[1].meta["iteration"])
        provenance = provenance | dict(agreement=dict(snapshots=snapshots, last=last))
    positions = [index for batch in batches for index in batch]
    open_writer = functools.partial(
        StoreWriter,
        path,
        header=make_header(model, options, provenance, total=len(samples)),
        ids=[samples[index].id for index in positions],
        positions=positions,
        kinds=kinds,
        image_scores=[AGREEMENT] if options.agreement else [],
        resume=options.resume,
    )
    # Rank 0 makes the folder of segments, the others join.
    writer = on_main(open_writer) or open_writer(rank=get_rank())
    # Nobody writes before every rank has read which ids are done, or they would divide different lists.
    barrier()
    with _resumable(path), writer:
        left = [batch for batch in batches if any(samples[index].id not in writer.done for index in batch)]
        mine = left[get_rank() :: get_world_size()]
        predicted = _predict(model, voters, predictor, samples, mine, options, description, labeled)
        for sample, prediction, own in predicted:
            writer.add(sample["data_samples"].sample_id, own, **_arrays(prediction, kinds))
    barrier()
    on_main(writer.finalize)
    _mark(path, options)
    return path


def _mark(path: Path, options: PseudolabelOptions) -> None:
    if options.reliability is not None:
        on_main(functools.partial(mark_reliable, path, options.reliability))


@contextlib.contextmanager
def _resumable(path: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"{path} is unfinished, what was predicted is kept; the same command with --resume goes on"
        ) from error


def _predict(
    model: Model,
    voters: tuple[list[Model], Model] | None,
    predictor: type[Predictor],
    samples: Sequence[Sample],
    batches: list[list[int]],
    options: PseudolabelOptions,
    description: DatasetDescription,
    labeled: Sequence[Sample],
) -> Iterator[tuple[dict[str, Any], Prediction, dict[str, float]]]:
    """Yield every sample of ``batches`` with its prediction and its scores as a whole."""
    if not batches:
        return
    dataset = ImageDataset(samples, description=description, labeled=False)
    loader = image_loader(dataset, batches, workers=options.workers)
    more: dict[str, Any] = {}
    if predictor.number_of_references:
        more["references"] = ImageDataset(labeled, description=description, labeled=False)
        more["number"] = options.references or predictor.number_of_references

    def made(one: Model) -> Predictor:
        return predictor.of(build_method(one), options.protocol, **more)

    own, agreement = made(model), None
    if voters is not None:
        snapshots, last = voters
        other = None if last.meta["iteration"] == model.meta["iteration"] else made(last)
        agreement = Agreement([made(one) for one in snapshots], other, num_classes=len(model.classes))

    def predicted() -> Iterator[tuple[dict[str, Any], Prediction, dict[str, float]]]:
        for batch in loader:
            found = own(batch)
            values = (
                [{AGREEMENT: value} for value in agreement(batch, found)]
                if agreement is not None
                else [{}] * len(batch)
            )
            yield from zip(batch, found, values, strict=True)

    yield from track(predicted(), "predict", total=sum(map(len, batches)))


def predictor_class(model: Model, options: PseudolabelOptions) -> type[Predictor]:
    """Return the predictor that the options name; UserError where the model's method has no such one."""
    known: dict[str, type[Predictor]] = model.method.predictors
    name = options.predictor or next(iter(known))
    if name not in known:
        raise UserError(
            f"--predictor {name!r}: a model of method {model.meta['method']} has {', '.join(known)}; name one of them"
        )
    if options.references is not None and not known[name].number_of_references:
        raise UserError(f"--references: predictor {name!r} does not compare with labeled images; leave it out")
    return known[name]


def map_name(kind: str) -> str:
    """Return the name by which ``--scores`` asks for a kind of map: its first part, without ``_maps``."""
    return kind.split("/")[0].removesuffix("_maps")


def stored_kinds(predictor: type[Predictor], scores: Sequence[str] | None) -> dict[str, MapKind]:
    """Return the kinds of maps that a store gets; raise UserError if the predictor does not give one that was asked for."""
    given = {kind: BUILT_IN[kind] for kind in SCORES} | predictor.maps
    names = {map_name(kind) for kind in given}
    for name in scores or ():
        if name not in names:
            raise UserError(
                f"--scores {name}: the model does not give it; it gives {', '.join(sorted(names))}, or none"
            )
    chosen = {
        kind: how for kind, how in given.items() if (not how.on_request if scores is None else map_name(kind) in scores)
    }
    return {MASKS: BUILT_IN[MASKS]} | chosen


def _arrays(prediction: Prediction, kinds: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the maps of one image on the CPU."""
    scores = {kind: SCORES[kind](prediction.probabilities[None])[0] for kind in kinds if kind in SCORES}
    others = {kind: found for kind, found in prediction.maps.items() if kind in kinds}
    return dict(
        mask=prediction.mask.cpu().numpy(), **{kind: found.cpu().numpy() for kind, found in (scores | others).items()}
    )


def make_header(model: Model, options: PseudolabelOptions, provenance: dict[str, Any], *, total: int) -> StoreHeader:
    """Return the header of a store that ``model`` makes."""
    asked = {key: getattr(options, key) for key in ("predictor", "references") if getattr(options, key) is not None}
    record = dict(
        checkpoint=str(model.checkpoint.resolve()),
        iteration=model.meta["iteration"],
        protocol=str(options.protocol),
        batch_size=options.batch_size,
        **asked,
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
        provenance=json.dumps(record, sort_keys=True),
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
            if store.kinds[kind].encoding == "score-map":
                save_image(folder / kind / f"{name}.jpg", heat(image, store.score(kind, name)))
            elif kind != MASKS:
                save_palette_png(folder / kind / f"{name}.png", store.stored(kind, name), store.palette)


def folder_samples(folder: Path) -> list[Sample]:
    """Return every image under ``folder``; raise UserError if there is none."""
    images = image_files(folder) if folder.is_dir() else {}
    if not images:
        raise UserError(f"--images {folder} holds no images; give a folder of images")
    return [Sample(name, path) for name, path in images.items()]
