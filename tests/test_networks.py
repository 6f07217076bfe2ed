"""Networks and tensor functions against slow, obvious references."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sslseg.engine.weights import load_weights, read_weights
from sslseg.errors import UserError
from sslseg.functional.confidence import confidence, normalized_entropy
from sslseg.networks import DeepLabV2Head


def test_deeplabv2_head_sums_its_atrous_branches() -> None:
    head = DeepLabV2Head(in_channels=5, in_index=1, num_classes=3, dilations=(1, 2))
    feature = torch.randn(2, 5, 9, 11)
    out = head([torch.zeros(1), feature])
    expected = sum(
        F.conv2d(feature, branch.weight, branch.bias, padding=rate, dilation=rate)
        for rate, branch in zip((1, 2), head.conv_seg, strict=True)
    )
    torch.testing.assert_close(out, expected)
    assert [branch.dilation for branch in DeepLabV2Head(in_channels=2, num_classes=3).conv_seg] == [
        (6, 6),
        (12, 12),
        (18, 18),
        (24, 24),
    ]


@pytest.mark.parametrize("classes", [2, 7, 21])
def test_confidence_and_entropy(classes: int) -> None:
    probabilities = (5 * torch.randn(2, classes, 3, 4)).softmax(1)
    probabilities[0, :, 0, 0] = F.one_hot(torch.tensor(1), classes).float()
    probabilities[1, :, 0, 0] = 1 / classes
    top, entropy = confidence(probabilities), normalized_entropy(probabilities)
    for image in range(2):
        for row in range(3):
            for column in range(4):
                values = probabilities[image, :, row, column].tolist()
                expected = -sum(value * math.log(value) for value in values if value > 0) / math.log(classes)
                assert float(top[image, row, column]) == pytest.approx(max(values))
                assert float(entropy[image, row, column]) == pytest.approx(expected, abs=1e-5)
    assert float(entropy[0, 0, 0]) == pytest.approx(0.0, abs=1e-6)
    assert float(entropy[1, 0, 0]) == pytest.approx(1.0, abs=1e-6)


def test_weights_of_a_file_go_where_they_fit(tmp_path) -> None:  # type: ignore[no-untyped-def]
    class Small(torch.nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.backbone = torch.nn.Conv2d(3, 4, 1)
            self.decode_head = torch.nn.Conv2d(4, classes, 1)

    source, target = Small(5), Small(2)
    head = target.decode_head.weight.clone()
    torch.save(dict(state_dict={f"module.{k}": v for k, v in source.state_dict().items()}), tmp_path / "a.pth")
    assert load_weights(target, read_weights(tmp_path / "a.pth"), name="a.pth") == (2, 4, "model")
    assert torch.equal(target.backbone.weight, source.backbone.weight)
    assert torch.equal(target.decode_head.weight, head)
    torch.save(dict(x=torch.zeros(1)), tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"b\.pth fits 0 of the backbone's 2 tensors"):
        load_weights(target, read_weights(tmp_path / "b.pth"), name="b.pth")
    (tmp_path / "c.pth").write_bytes(b"x")
    torch.save([torch.zeros(1)], tmp_path / "d.pth")
    for name in ("c.pth", "d.pth"):
        with pytest.raises(UserError, match="not a readable checkpoint"):
            read_weights(tmp_path / name)
