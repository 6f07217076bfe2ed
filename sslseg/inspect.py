"""The metadata of a split, a run, a checkpoint or a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslseg.artifacts.find import Artifact, identify, load_model
from sslseg.artifacts.run import Run
from sslseg.splits.split import Split

if TYPE_CHECKING:
    from sslseg.store import StoreReader


def inspect(path: str | Path) -> dict[str, Any]:
    """Return the metadata of a split, run, checkpoint or store as JSON types, the most important first."""
    artifact = identify(path)
    readers = dict(split=_split, run=_run, checkpoint=_checkpoint, store=_store)
    return dict(kind=artifact.kind) | readers[artifact.kind](artifact)


def _split(artifact: Artifact) -> dict[str, Any]:
    split = Split.load(artifact.path)
    counts = {name: len(getattr(split, name)) for name in ("labeled", "unlabeled", "val")}
    origin = dict(seed=split.seed, ratio=split.ratio, strategy=split.strategy, family=split.family["name"])
    return dict(
        dataset=split.dataset.name,
        root=split.dataset.root,
        classes=list(split.dataset.classes),
        **counts,
        **origin,
        sha256=split.sha256,
    )


def _run(artifact: Artifact) -> dict[str, Any]:
    run = Run(artifact.path)
    record = run.read()
    dataset = record.pop("dataset")
    stores = sorted(path.name for path in run.stores.glob("*.h5*")) if run.stores.exists() else []
    split = Split.load(run.split_folder)
    return dict(
        status=record["status"],
        method=record["method"],
        dataset=dataset["name"],
        labeled=len(split.labeled),
        unlabeled=len(split.unlabeled),
        **{key: value for key, value in record.items() if key not in ("status", "method", "format", "version")},
        **_history(run, dataset["classes"]),
        stores=stores,
    )


def _history(run: Run, classes: list[str]) -> dict[str, Any]:
    """Return the training curves of what a method logs beside losses: a few values of each, of those by class the latest."""
    history: dict[str, list[str]] = {}
    by_class: dict[str, list[str]] = {}
    for record in (record for record in run.metrics() if "val" not in record):
        for key, value in record.items():
            if isinstance(value, list):
                by_class[key] = [f"{name} {part:.0%}" for name, part in zip(classes, value, strict=True)]
            elif "loss" not in key and key not in ("iteration", "lr", "seconds_per_iteration", "seconds_per_step"):
                history.setdefault(key, []).append(f"{value:.4g} (iteration {record['iteration']})")
    return {key: _some(values) for key, values in history.items()} | by_class


def _some(values: list[str], number: int = 5) -> list[str]:
    """Return at most ``number`` values, evenly spaced, the last among them."""
    spaced = {round(index * (len(values) - 1) / (number - 1)) for index in range(number)}
    return [values[index] for index in sorted(spaced)]


def _checkpoint(artifact: Artifact) -> dict[str, Any]:
    model = load_model(artifact.path)
    meta = dict(model.meta)
    meta.pop("config")
    dataset = meta.pop("dataset")
    parameters = sum(value.numel() for value in model.state_dict.values())
    return dict(
        method=meta.pop("method"),
        iteration=meta.pop("iteration"),
        dataset=dataset["name"],
        classes=dataset["classes"],
        values=parameters,
        **meta,
    )


def _store(artifact: Artifact) -> dict[str, Any]:
    from sslseg.store import StoreReader

    store = StoreReader(artifact.path)
    header = store.header.to_dict()
    for key in ("palette", "provenance"):
        header.pop(key)
    size = artifact.path.stat().st_size
    return dict(
        ids=len(store),
        kinds=list(store.kinds),
        bytes=size,
        **header,
        **store.provenance,
        **_agreement(store),
        content_sha256=store.content_sha256,
    )


def _agreement(store: StoreReader, number: int = 5) -> dict[str, Any]:
    """Return the mean agreement of snapshots, and the images with the highest and the lowest, where the store holds it."""
    from sslseg.store.format import AGREEMENT
    from sslseg.store.ranking import ranked

    values = store.image_scores.get(AGREEMENT)
    if values is None:
        return {}
    order = ranked(store, store.ids)
    return dict(
        agreement_mean=sum(values.values()) / len(values),
        agreement_highest={name: round(values[name], 4) for name in order[:number]},
        agreement_lowest={name: round(values[name], 4) for name in order[::-1][:number]},
    )
