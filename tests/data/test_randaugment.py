"""Strong augmentation A and its operator B: the same geometry, to the pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sslseg.data.dataset import seed_everything
from sslseg.data.randaugment import GEOMETRIC, OPERATIONS, PHOTOMETRIC, RandAugment, RandomCutouts
from sslseg.methods.base import move_targets

IGNORE = 255


def results_of(image: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    fill = dict(img=(IGNORE,) * 3, pseudo_map=IGNORE, valid_map=255)
    return dict(
        img=image.copy(),
        pseudo_map=mask.copy(),
        valid_map=np.zeros(mask.shape, np.uint8),
        seg_fields=["pseudo_map", "valid_map"],
        fill=fill,
    )


def blocks(height: int, width: int, classes: int = 5) -> np.ndarray:
    coarse = np.random.randint(0, classes, (height // 4 + 1, width // 4 + 1)).astype(np.uint8)
    return np.kron(coarse, np.ones((4, 4), np.uint8))[:height, :width]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(12, 60), width=st.integers(12, 60))
def test_an_image_made_of_its_own_mask_moves_as_the_mask_does(seed: int, height: int, width: int) -> None:
    """A(image of the mask) = B(mask), pixel by pixel, for stored masks, valid pixels and a teacher's prediction."""
    seed_everything(seed)
    mask = blocks(height, width)
    augment = RandAugment(num_ops=3, prob=0.9, operations=tuple(GEOMETRIC), interpolation="nearest")
    moved = augment(results_of(np.repeat(mask[..., None], 3, axis=2), mask))
    one_hot = F.one_hot(torch.from_numpy(mask).long(), 5).permute(2, 0, 1)[None].float()
    teacher = move_targets(one_hot, dict(matrix=moved["matrix"][None]))[0]
    inside = moved["valid_map"] == 0
    np.testing.assert_array_equal(moved["img"], np.repeat(moved["pseudo_map"][..., None], 3, axis=2))
    np.testing.assert_array_equal(moved["pseudo_map"] == IGNORE, ~inside)
    np.testing.assert_array_equal(teacher.argmax(0).numpy()[inside], moved["pseudo_map"][inside])
    assert (teacher.sum(0).numpy()[~inside] == 0).all()
    cut = RandomCutouts(number=3, size=5)(moved)
    np.testing.assert_array_equal(cut["img"], np.repeat(cut["pseudo_map"][..., None], 3, axis=2))
    np.testing.assert_array_equal(cut["pseudo_map"] == IGNORE, cut["valid_map"] != 0)
    assert (cut["valid_map"] != 0).sum() >= max((~inside).sum(), 25)


def test_the_smooth_image_agrees_with_the_mask_away_from_borders() -> None:
    seed_everything(4)
    agreed = 0
    for _ in range(20):
        mask = blocks(48, 40)
        augment = RandAugment(num_ops=2, prob=1.0, magnitude=(3, 9), operations=tuple(GEOMETRIC))
        moved = augment(results_of(np.repeat(mask[..., None], 3, axis=2), mask))
        label = torch.from_numpy(moved["pseudo_map"].astype(np.float32))[None, None]
        flat = (F.max_pool2d(label, 3, 1, 1) == -F.max_pool2d(-label, 3, 1, 1))[0, 0].numpy()
        flat &= moved["pseudo_map"] != IGNORE
        flat[[0, -1]] = flat[:, [0, -1]] = False  # there the smooth image may blend with pixels from outside
        np.testing.assert_array_equal(moved["img"][flat][:, 0], moved["pseudo_map"][flat])
        agreed += flat.sum()
    assert agreed > 1000


@pytest.mark.parametrize("name", sorted(PHOTOMETRIC))
def test_photometric_operations_move_nothing(name: str) -> None:
    seed_everything(0)
    image, mask = np.random.randint(0, 256, (20, 24, 3)).astype(np.uint8), blocks(20, 24)
    augment = RandAugment(num_ops=1, prob=1.0, magnitude=(9, 9), operations=(name,))
    done = augment(results_of(image, mask))
    assert torch.equal(done["matrix"], torch.eye(2, 3))
    np.testing.assert_array_equal(done["pseudo_map"], mask)
    assert done["img"].dtype == np.uint8
    changed = not np.array_equal(done["img"], image)
    # An image of noise already uses the whole range.
    assert changed or name in ("identity", "autocontrast")


@pytest.mark.parametrize("name", sorted(GEOMETRIC))
def test_geometric_operations_do_what_their_names_say(name: str) -> None:
    seed_everything(1)
    augment = RandAugment(num_ops=1, prob=1.0, magnitude=(10, 10), operations=(name,))
    matrices = [augment(results_of(np.zeros((31, 41, 3), np.uint8), blocks(31, 41)))["matrix"] for _ in range(20)]
    linear, shifts = torch.stack(matrices)[:, :, :2], torch.stack(matrices)[:, :, 2]
    identity = torch.eye(2).expand_as(linear)
    if name.startswith("translate"):
        torch.testing.assert_close(linear, identity)
        axis, side = (0, 41) if name.endswith("x") else (1, 31)
        torch.testing.assert_close(shifts[:, axis].abs(), torch.full((20,), 0.3 * side))
        assert shifts[:, 1 - axis].abs().max() < 1e-4
        return
    centers = linear @ torch.tensor([20.0, 15.0]) + shifts
    torch.testing.assert_close(centers, torch.tensor([20.0, 15.0]).expand(20, 2), atol=1e-4, rtol=0)
    if name == "rotate":
        angles = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
        torch.testing.assert_close(angles.abs(), torch.full((20,), 30.0))
        assert angles.min() < 0 < angles.max()
    else:
        entry = (0, 1) if name.endswith("x") else (1, 0)
        torch.testing.assert_close(linear[:, entry[0], entry[1]].abs(), torch.full((20,), 0.3))


def test_there_are_fourteen_operations_and_their_number_is_checked() -> None:
    assert len(OPERATIONS) == 14
    with pytest.raises(ValueError, match="spin"):
        RandAugment(num_ops=1, operations=("spin",))
    with pytest.raises(ValueError, match="15"):
        RandAugment(num_ops=15)


def test_never_applied_leaves_everything_as_it_was() -> None:
    image, mask = np.random.randint(0, 256, (20, 24, 3)).astype(np.uint8), blocks(20, 24)
    done = RandAugment(prob=0.0)(results_of(image, mask))
    np.testing.assert_array_equal(done["img"], image)
    assert torch.equal(done["matrix"], torch.eye(2, 3))
