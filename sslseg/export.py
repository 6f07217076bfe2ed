"""A trained model as plain mmseg files, which load without sslseg."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sslseg.artifacts.checkpoint import save_checkpoint
from sslseg.artifacts.find import Model, build_segmentor
from sslseg.config.fit import without_pretrained
from sslseg.files import write_text
from sslseg.registry import MODELS, SCOPE

CONFIG, CHECKPOINT = "config.py", "model.pth"
IMPORTED_BY_MMSEG = ("mmseg", "mmcv", "mmengine", "torch")


def export(model: Model, folder: Path) -> Path:
    """Write ``config.py`` and ``model.pth`` into ``folder`` for mmseg's ``init_model`` and ``inference_model``.

    The modules of networks that mmseg lacks, ours or a plug-in's, are named in the config's ``custom_imports``; loading such
    a model needs their packages.
    """
    from mmengine.config import Config, ConfigDict

    segmentor = build_segmentor(model)
    dataset = model.meta["dataset"]
    fields: dict[str, Any] = dict(
        default_scope="mmseg",
        model=scoped(plain_norm(without_pretrained(model.config.model))),
        dataset_type="BaseSegDataset",
        test_pipeline=[dict(type="LoadImageFromFile"), dict(type="PackSegInputs")],
    )
    pipeline = fields["test_pipeline"]
    metainfo = dict(classes=dataset["classes"], palette=dataset["palette"])
    fields["test_dataloader"] = dict(dataset=dict(type="BaseSegDataset", metainfo=metainfo, pipeline=pipeline))
    imports = own_modules(segmentor)
    if imports:
        fields["custom_imports"] = dict(imports=imports, allow_failed_imports=False)
    folder.mkdir(parents=True, exist_ok=True)
    meta = dict(dataset_meta=metainfo, method=model.meta["method"], iteration=model.meta["iteration"])
    meta["pretrained"] = model.meta.get("pretrained", "unknown")
    state = {name: value.cpu() for name, value in segmentor.state_dict().items()}
    save_checkpoint(folder / CHECKPOINT, dict(meta=meta, state_dict=state))
    write_text(folder / CONFIG, Config(ConfigDict(fields).to_dict()).pretty_text)
    return folder


def own_modules(segmentor: Any) -> list[str]:
    """Return the Python modules that register parts of a segmentor: all but those that mmseg imports itself."""
    own = {part for name, part in MODELS.module_dict.items() if not known_to_mmseg(name)}
    registered = {*own, *MODELS.parent.module_dict.values()}
    names = {type(part).__module__ for part in segmentor.modules() if type(part) in registered}
    return sorted(name for name in names if name.split(".")[0] not in IMPORTED_BY_MMSEG)


def known_to_mmseg(name: str) -> bool:
    """Return whether mmseg registers a class of this name, such as a loss that trains otherwise here and predicts alike."""
    return name in MODELS.parent.module_dict


def scoped(config: Any) -> Any:
    """Return ``config`` with our scope before the names of our networks, which mmseg would not find without it."""
    if isinstance(config, dict):
        for key, value in config.items():
            ours = key == "type" and value in MODELS.module_dict and not known_to_mmseg(value)
            config[key] = f"{SCOPE}.{value}" if ours else scoped(value)
    elif isinstance(config, list):
        config[:] = [scoped(item) for item in config]
    return config


def plain_norm(config: Any) -> Any:
    """Return ``config`` with BatchNorm for SyncBatchNorm, so that it runs on one device."""
    if isinstance(config, dict):
        for key, value in config.items():
            config[key] = "BN" if key == "type" and value == "SyncBN" else plain_norm(value)
    elif isinstance(config, list):
        config[:] = [plain_norm(item) for item in config]
    return config
