"""GCT's Table 1: every method of it in the paper's setting, and the model that is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from sslseg.artifacts.find import build_method, find_model
from sslseg.config.build import TrainOptions, build_config
from sslseg.registry import MODELS
from sslseg.splits.split import Split
from tests.conftest import SHORT, Sslseg

APPENDIX_C: dict[str, dict[str, Any]] = {
    "gct": dict(consistency_weight=100.0, correction_weight=1.0, threshold=0.6, rampup="3 epochs"),
    "mean-teacher": dict(consistency="mse", weight=1.0, rampup="3 epochs", decay=0.99, detector=None),
    "s4l": dict(weight=0.1),
    "adv-ssl": dict(labeled_weight=0.01, unlabeled_weight=0.001, semi_weight=0.0),
}


@pytest.mark.parametrize("name", APPENDIX_C)
def test_methods_of_table_1_differ_in_the_method_alone(toy_split: Split, name: str) -> None:
    stem = "voc_deeplabv2" if name == "gct" else "voc_gct_deeplabv2"
    config = build_config(toy_split, TrainOptions(config=f"{name}/{stem}", pretrained="none"))
    assert {key: config.method[key] for key in APPENDIX_C[name]} == APPENDIX_C[name]
    gct = build_config(toy_split, TrainOptions(config="gct/voc_deeplabv2", pretrained="none"))
    for section in ("model", "data", "schedule", "optimizer", "paramwise"):
        assert config[section] == gct[section], section
    assert config.schedule.iterations == 200_000 // 4
    if name == "mean-teacher":
        assert config.views.strong == config.views.weak == []


def test_what_is_exported_predicts_as_the_left_model(workspace: Path, sslseg: Sslseg) -> None:
    run = sslseg("train", "--method", "gct", "--model", "deeplabv3plus_r18s", *SHORT).path
    folder = sslseg("export", run, "--out", "plain").path
    plain = MODELS.build(Config.fromfile(folder / "config.py").model)
    plain.load_state_dict(torch.load(folder / "model.pth", weights_only=True)["state_dict"], strict=True)
    method = build_method(find_model(run))
    images, metas = torch.randn(2, 3, 48, 64), [dict(img_shape=(48, 64))] * 2
    with torch.no_grad():
        logits = [model.eval().encode_decode(images, metas) for model in (plain, method.left, method.right)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
