"""What methods share: the preprocessor, and the segmentor's own losses from a pass over more than its labeled images."""

from __future__ import annotations

import pytest
import torch
from mmseg.models.decode_heads import decode_head
from mmseg.models.losses import accuracy
from mmseg.structures import SegDataSample

from sslseg.errors import UserError
from sslseg.registry import MODELS
from tests.methods.conftest import build, labeled_view, segmentor

MT = dict(rampup=0.0, decay=0.9)


@pytest.mark.parametrize("bgr_to_rgb", [True, False])
def test_views_are_normalized_as_the_segmentor_does(bgr_to_rgb: bool) -> None:
    config = segmentor()
    config.data_preprocessor.bgr_to_rgb = bgr_to_rgb
    method = MODELS.build(dict(type="Supervised", segmentor=config))
    images = torch.randint(0, 256, (3, 3, 32, 40), dtype=torch.uint8)
    label = torch.randint(0, 4, (3, 32, 40), dtype=torch.uint8)
    view = method.data_preprocessor(dict(labeled_weak=dict(inputs=images, labels=label)))["batch"]["labeled_weak"]
    own = method.student.data_preprocessor(
        dict(inputs=list(images), data_samples=[SegDataSample() for _ in images]), True
    )
    torch.testing.assert_close(view["inputs"], own["inputs"])
    assert torch.equal(view["labels"], label.long())
    assert torch.equal(view["data_samples"][2].gt_sem_seg.data[0], label[2].long())


def test_losses_of_a_shared_pass_are_the_segmentor_s_own() -> None:
    config = segmentor()
    config.auxiliary_head = dict(
        type="FCNHead",
        in_channels=64,
        in_index=2,
        channels=8,
        num_convs=1,
        num_classes=4,
        dropout_ratio=0.0,
        ignore_index=255,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=0.4),
    )
    method = MODELS.build(dict(type="MeanTeacher", segmentor=config, **MT)).eval()  # BatchNorm would mix the images
    labeled = labeled_view()
    losses, logits, features = method.supervise(labeled, torch.randn(3, 3, 40, 48))
    own = method.student.loss(labeled["inputs"], labeled["data_samples"])
    assert set(losses) == {"decode.loss_ce", "aux.loss_ce"}
    for name, value in losses.items():
        torch.testing.assert_close(value, own[name])
    assert logits.shape == (5, 4, 40, 48)
    assert len(features[-1]) == 5
    assert decode_head.accuracy is accuracy, "restored"


def test_a_head_of_several_maps_is_refused() -> None:
    method = build("MeanTeacher", **MT)
    method.student.decode_head.forward = lambda features: (features[0], features[1])
    with pytest.raises(UserError, match="more than one score map"):
        method.supervise(labeled_view(), torch.randn(1, 3, 40, 48))


def test_prediction_does_not_go_through_a_method() -> None:
    with pytest.raises(ValueError, match="eval_model"):
        build("MeanTeacher", **MT)({}, mode="predict")


def test_a_batch_that_batchnorm_cannot_normalize_is_one_line() -> None:
    method = build("Supervised")
    with pytest.raises(UserError, match="--batch-size"):
        method(dict(labeled_weak=labeled_view(1)))
    method.loss = lambda batch: (_ for _ in ()).throw(ValueError("something else"))
    with pytest.raises(ValueError, match="something else"):
        method({})
