"""The evaluation worker: scores of a model or of a store against the labels, under a named protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from torch import Tensor

from sslseg.artifacts.find import Model, build_segmentor, check_classes
from sslseg.data.dataset import ImageDataset, image_loader
from sslseg.data.description import Sample
from sslseg.data.labels import ignore_value
from sslseg.data.reading import label_table, read_image, read_mask
from sslseg.errors import UserError
from sslseg.evaluation.figures import save_confusion, save_panel
from sslseg.evaluation.metrics import SegmentationMetric
from sslseg.evaluation.misclassification import MisclassificationDetection
from sslseg.inference import Predictor, Protocol, predict_all
from sslseg.progress import track
from sslseg.splits.split import Split
from sslseg.store import StoreReader
from sslseg.store.format import AGREEMENT, BUILT_IN, RELIABLE
from sslseg.store.ranking import keep_images

BATCH = 4
Scored = tuple[Sample, Tensor, Tensor, list[np.ndarray]]  # sample, mask, label, score maps for the panel


def evaluate_model(
    model: Model,
    split: Split,
    *,
    subset: str,
    protocol: Protocol,
    workers: int = 2,
    figures: Path | None = None,
) -> dict[str, Any]:
    """Score ``model`` on the labeled images of ``subset`` and return the scores (``SegmentationMetric.finish``).

    This predicts with the method's ``eval_model``, a plain segmentor. ``pseudolabel`` predicts with one of the method's
    ``predictors``: if that one fuses several models or images, the scores of its store may differ from these.
    """
    check_classes(model, split.dataset.classes, where=f"dataset {split.dataset.name!r}")
    samples = with_masks(split, subset)
    dataset = ImageDataset(samples, description=split.dataset, labeled=True)
    indices = list(range(get_rank(), len(dataset), get_world_size()))
    batches = [indices[start : start + BATCH] for start in range(0, len(indices), BATCH)]
    predictor = Predictor(build_segmentor(model), protocol)

    def scored() -> Iterator[Scored]:
        predictions = predict_all(predictor, image_loader(dataset, batches, workers=workers))
        for index, (sample, prediction) in zip(indices, predictions, strict=True):
            yield samples[index], prediction.mask, sample["data_samples"].gt_sem_seg.data[0], []

    scores = _score(scored(), split, total=len(samples), figures=figures, protocol=protocol)
    return dict(scores, protocol=str(protocol), subset=subset, checkpoint=str(model.checkpoint))


def evaluate_store(
    store: StoreReader, split: Split, *, subset: str | None = None, figures: Path | None = None
) -> dict[str, Any]:
    """Score the masks of ``store`` against the labels of its ids, where there are any, and return the scores.

    Args:
        subset: score only those of this subset of the split.

    Returns:
        The scores of ``SegmentationMetric.finish``; ``error_detection``: misclassification detection with each score,
        as AUROC and average precision in [0, 1], and what its high values mean; ``other_masks``: the scores of other
        stored masks by their kind; if the store marks unreliable pixels ``reliable``: the percentage of labeled
        pixels that are reliable, and their mIoU and aAcc; and if it holds the agreement of snapshots ``agreement``: the mIoU
        of the half of the images with the highest, and of the rest.
    """
    if store.classes != tuple(split.dataset.classes):
        raise UserError(
            f"store {store.path} has other classes than dataset {split.dataset.name!r}; give the split it belongs to"
        )
    by_id = {sample.id: sample for sample in split.samples(subset or "all")}
    samples = [by_id[name] for name in store.ids if name in by_id and by_id[name].mask is not None]
    if not samples:
        raise UserError(
            f"store {store.path}: none of its {len(store)} ids has a label in {split.dataset.name!r}"
            f"{f', subset {subset}' if subset else ''}"
        )
    table, ignored = label_table(split.dataset), ignore_value(split.dataset.num_classes)
    detections = [MisclassificationDetection(score, high=store.high(score)) for score in store.scores]
    reliable = SegmentationMetric(store.classes, ignore_index=ignored) if store.has(RELIABLE) else None
    own_kinds = {name: kind for name, kind in store.kinds.items() if name not in BUILT_IN}
    others = {
        name: SegmentationMetric(store.classes, ignore_index=ignored)
        for name, kind in own_kinds.items()
        if not kind.is_score
    }
    halves: dict[str, SegmentationMetric] = {}
    if AGREEMENT in store.image_scores and len(samples) > 1:
        best = frozenset(keep_images(0.5, store, [sample.id for sample in samples]).kept)
        halves = {name: SegmentationMetric(store.classes, ignore_index=ignored) for name in ("best_half", "rest")}
    shown = [name for name, kind in own_kinds.items() if kind.is_score and figures is not None]

    def scored() -> Iterator[Scored]:
        for sample in samples[get_rank() :: get_world_size()]:
            mask, label = store.mask(sample.id), read_mask(str(sample.mask), table)
            if mask.shape != label.shape:
                raise UserError(f"store {store.path}: {sample.id!r} is {mask.shape}, its label {label.shape}")
            for detection in detections:
                stored = store.stored(detection.score, sample.id)
                detection.add(stored, wrong=mask != label, valid_mask=label != ignored)
            if reliable is not None:
                kept = store.stored(RELIABLE, sample.id) != ignored
                reliable.add(as_tensor(mask), as_tensor(np.where(kept, label, ignored)))
            for half, metric in halves.items():
                # Every rank adds every image to both: mmengine gathers as many results of each.
                own = (sample.id in best) == (half == "best_half")
                metric.add(as_tensor(mask), as_tensor(label if own else np.full_like(label, ignored)))
            for kind, metric in others.items():
                metric.add(as_tensor(store.stored(kind, sample.id)), as_tensor(label))
            yield sample, as_tensor(mask), as_tensor(label), [store.score(kind, sample.id) for kind in shown]

    scores = _score(scored(), split, total=len(samples), figures=figures, protocol=None)
    provenance = store.provenance
    if reliable is not None:
        own = reliable.finish(len(samples))
        share = np.sum(own["confusion"]) / max(np.sum(scores["confusion"]), 1)
        scores["reliable"] = dict(share=100 * float(share), mIoU=own["mIoU"], aAcc=own["aAcc"])
    if halves:
        scores["agreement"] = {half: metric.finish(len(samples))["mIoU"] for half, metric in halves.items()}
    return dict(
        scores,
        protocol=f"store, {provenance.get('protocol')}",
        subset=subset or provenance.get("subset"),
        store=str(store.path),
        error_detection={detection.score: dict(high=detection.high, **detection.finish()) for detection in detections},
        other_masks={kind: metric.finish(len(samples)) for kind, metric in others.items()},
    )


def as_tensor(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(mask.astype("int64"))


def with_masks(split: Split, subset: str) -> list[Sample]:
    """Return the samples of ``subset`` that have a mask; raise UserError if none has."""
    samples = [sample for sample in split.samples(subset) if sample.mask is not None]
    if not samples:
        raise UserError(f"subset {subset!r} of the split has no labeled image to score; choose another with --subset")
    return samples


def _score(
    scored: Iterator[Scored], split: Split, *, total: int, figures: Path | None, protocol: Protocol | None
) -> dict[str, Any]:
    classes, palette = split.dataset.classes, split.dataset.palette
    metric = SegmentationMetric(classes, ignore_index=ignore_value(len(classes)))
    own = len(range(get_rank(), total, get_world_size()))
    for sample, mask, label, maps in track(scored, "evaluate", total=own):
        metric.add(mask, label)
        if figures is not None:
            crop = protocol.crop if protocol is not None and protocol.mode == "center-crop" else None
            image = read_image(sample.image)
            save_panel(figures / f"{sample.id}.png", image, label, mask, palette=palette, crop=crop, scores=maps)
    scores = metric.finish(total)
    if figures is not None and get_rank() == 0:
        save_confusion(figures / "confusion.png", scores["confusion"], classes)
    return dict(scores, images=total, dataset=split.dataset.name)
