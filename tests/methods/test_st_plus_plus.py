"""The recipe of ST++, as built from its leaf config, against what was published."""

from __future__ import annotations

from sslseg.config.build import TrainOptions, build_config
from sslseg.engine.build import transforms_of
from sslseg.splits.split import Split


def test_stored_images_are_seen_jittered_and_cut_and_labeled_ones_plainly(toy_split: Split) -> None:
    config = build_config(toy_split, TrainOptions(config="self-training/default_st_plus_plus"))
    assert (config.method.type, config.method.weight) == ("SelfTraining", 1.0)
    assert transforms_of("weak", config) == []
    jitter, gray, blur, cutout = transforms_of("strong", config)
    values = [jitter[name] for name in ("prob", "brightness", "contrast", "saturation", "hue")]
    assert (jitter.type, values) == ("ColorJitter", [0.8, 0.5, 0.5, 0.5, 0.25])
    assert dict(gray) == dict(type="RandomGray", prob=0.2)
    assert dict(blur) == dict(type="RandomBlur", prob=0.5, sigma=(0.1, 2.0))
    assert dict(cutout) == dict(type="NoiseCutout", prob=0.5, area=(0.02, 0.4))
