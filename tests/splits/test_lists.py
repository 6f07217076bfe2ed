from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from sslseg.errors import UserError
from sslseg.splits.lists import read_list

VOC = ["2007_000032", "2007_000733", "2011_000068"]
CITY = ["jena/jena_000078_000019", "strasbourg/strasbourg_000001_026106", "ulm/ulm_000079_000019"]


def write(tmp_path: Path, data: str | bytes, name: str = "list.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize(
    ("known", "text", "expected"),
    [
        (VOC, "2011_000068\r\n2007_000032", ["2011_000068", "2007_000032"]),
        (VOC, "\ufeff2011_000068\n\n", ["2011_000068"]),
        (VOC, "JPEGImages/2007_000733.jpg SegmentationClass/2007_000733.png\n", ["2007_000733"]),
        (VOC, "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n", ["2007_000032"]),
        (CITY, "leftImg8bit/train/ulm/ulm_000079_000019_leftImg8bit.png\n", [CITY[2]]),
        (
            CITY,
            "leftImg8bit/train/jena/jena_000078_000019_leftImg8bit.png"
            " gtFine/train/jena/jena_000078_000019_gtFine_labelTrainIds.png",
            [CITY[0]],
        ),
        (
            CITY,
            "/images/train/jena_000078_000019.png\t/segmentation/train/jena_000078_000019_gtFine.png",
            [CITY[0]],
        ),
        (CITY, "strasbourg/strasbourg_000001_026106_leftImg8bit.png", [CITY[1]]),
        (["v1.5", "v1.6"], "v1.6", ["v1.6"]),
    ],
)
def test_published_formats(tmp_path: Path, known: list[str], text: str, expected: list[str]) -> None:
    found = read_list(write(tmp_path, text), known)
    assert (found.ids, found.permutation) == (expected, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2011_000068\nnobody", r"list\.txt:2: 'nobody' is not an image of the dataset"),
        ("2011_000068\n\n2011_000068", r"list\.txt:3 names '2011_000068' again \(first in line 1\)"),
        ("", r"list\.txt is empty"),
        (b"\xff\xfe\x00", r"list\.txt is neither text nor a pickle"),
    ],
)
def test_wrong_lists_are_named_with_their_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_list(write(tmp_path, text), VOC)


def test_an_entry_that_fits_two_ids(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"list\.txt:1: 'x' could be 'a/x' or 'b/x'"):
        read_list(write(tmp_path, "x"), ["a/x", "b/x"])
    assert read_list(write(tmp_path, "root/b/x.png"), ["a/x", "b/x"]).ids == ["b/x"]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_permutation(tmp_path: Path, protocol: int) -> None:
    path = write(tmp_path, pickle.dumps(np.array([2, 0, 1]), protocol), "split.pkl")
    found = read_list(path, VOC, train=VOC)
    assert (found.ids, found.permutation) == ([VOC[2], VOC[0], VOC[1]], True)


@pytest.mark.parametrize("array", [np.arange(2), np.array([0, 0, 1]), np.arange(3.0), [0, 1, 2]])
def test_other_pickles_are_refused(tmp_path: Path, array: object) -> None:
    with pytest.raises(UserError, match="is not a permutation of the 3 training images"):
        read_list(write(tmp_path, pickle.dumps(array)), VOC, train=VOC)


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_pickles_run_no_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with pytest.raises(UserError, match="it was not loaded"):
        read_list(write(tmp_path, pickle.dumps(Attack(marker))), VOC, train=VOC)
    assert not marker.exists()
