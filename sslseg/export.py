"""A trained model as plain mmseg files, which load without sslseg."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sslseg.artifacts import Model, build_segmentor, without_pretrained
from sslseg.engine.checkpoints import save_atomically
from sslseg.files import write_text
from sslseg.registry import METHODS, SCOPE

CONFIG, CHECKPOINT = "config.py", "model.pth"


def export(model: Model, folder: Path) -> Path:
    """Write ``config.py`` and ``model.pth`` into ``folder`` for mmseg's ``init_model`` and ``inference_model``.

    Networks of ours that mmseg lacks are named in the config's ``custom_imports``, which then needs sslseg.
    """
    from mmengine.config import Config, ConfigDict

    segmentor = build_segmentor(model)
    config = Config.fromstring(model.meta["config"], file_format=".py")
    dataset = model.meta["dataset"]
    fields: dict[str, Any] = dict(
        default_scope="mmseg",
        model=scoped(plain_norm(without_pretrained(config.model))),
        dataset_type="BaseSegDataset",
        test_pipeline=[dict(type="LoadImageFromFile"), dict(type="PackSegInputs")],
    )
    pipeline = fields["test_pipeline"]
    metainfo = dict(classes=dataset["classes"], palette=dataset["palette"])
    fields["test_dataloader"] = dict(dataset=dict(type="BaseSegDataset", metainfo=metainfo, pipeline=pipeline))
    if any(type(module).__module__.startswith("sslseg.") for module in segmentor.modules()):
        fields["custom_imports"] = dict(imports=["sslseg.networks"], allow_failed_imports=False)
    folder.mkdir(parents=True, exist_ok=True)
    meta = dict(dataset_meta=metainfo, method=model.meta["method"], step=model.meta["iter"])
    state = {name: value.cpu() for name, value in segmentor.state_dict().items()}
    save_atomically(folder / CHECKPOINT, dict(meta=meta, state_dict=state))
    write_text(folder / CONFIG, Config(ConfigDict(fields).to_dict()).pretty_text)
    return folder


def scoped(config: Any) -> Any:
    """Return ``config`` with our scope before the names of our networks, which mmseg would not find without."""
    if isinstance(config, dict):
        for key, value in config.items():
            ours = key == "type" and value in METHODS.module_dict
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
