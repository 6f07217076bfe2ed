from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sslseg.artifacts.workspace import Workspace
from sslseg.errors import UserError
from sslseg.init import describe, toml_text
from tests.data.make import SIZE, folder, mask


def repaint(root: Path, values: np.ndarray) -> None:
    for path in root.glob("masks/*/*.png"):
        mask(path, values)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.txt", "sky\nroad\ncar\n"),
        ("labels.txt", "sky\r\nroad\r\ncar"),
        ("codes.txt", "sky\nroad\ncar\n"),
        ("class_dict.csv", "name,r,g,b\nsky,1,2,3\nroad,4,5,6\ncar,7,8,9\n"),
    ],
)
def test_names_from_files(tmp_path: Path, file: str, text: str) -> None:
    root = folder(tmp_path)
    (root / file).write_text(text)
    found = describe(root).description
    assert found.classes == ("sky", "road", "car")
    if file.endswith("csv"):
        assert found.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))


def test_names_given_win(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "classes.txt").write_text("x\ny\nz\n")
    assert describe(root, classes="a, b,c").description.classes == ("a", "b", "c")
    (tmp_path / "own.txt").write_text("d\ne\nf\n")
    assert describe(root, classes=str(tmp_path / "own.txt")).description.classes == ("d", "e", "f")


@pytest.mark.parametrize(
    ("values", "given", "ignore", "count", "guessed"),
    [
        ([0, 1, 2, 255], None, 255, 3, True),
        ([0, 1, 11], 11, 11, 11, None),
        ([0, 1, 2], None, None, 3, True),
        ([0, 1, 5], 0, 0, 5, None),
        ([0, 300, 65535], None, 65535, 301, True),
    ],
)
def test_ignore_index_and_class_count(
    tmp_path: Path, values: list[int], given: int | None, ignore: int | None, count: int, guessed: bool | None
) -> None:
    root = folder(tmp_path)
    repaint(root, np.resize(values, (SIZE, SIZE)))
    if given == 11:
        repaint(root, np.resize([*range(11), 11], (SIZE, SIZE)))
    found = describe(root, ignore_index=given)
    assert (found.description.ignore_index, found.description.num_classes, found.guessed) == (
        ignore,
        count,
        bool(guessed),
    )


def test_black_and_white_masks(tmp_path: Path) -> None:
    root = folder(tmp_path)
    repaint(root, np.resize([0, 255], (SIZE, SIZE)))
    found = describe(root).description
    assert (found.classes, found.ignore_index, found.options["values"]) == (
        ("background", "foreground"),
        None,
        [0, 255],
    )


def test_palette_of_the_masks(tmp_path: Path) -> None:
    root = folder(tmp_path)
    for path in root.glob("masks/*/*.png"):
        picture = Image.fromarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), mode="P")
        picture.putpalette([9, 9, 9, 8, 0, 0, 0, 7, 0])
        picture.save(path)
    assert describe(root).description.palette == ((9, 9, 9), (8, 0, 0), (0, 7, 0))


def test_color_masks(tmp_path: Path) -> None:
    root = folder(tmp_path)
    for path in root.glob("masks/*/*.png"):
        cv2.imwrite(str(path), np.resize(np.array([(3, 2, 1), (6, 5, 4)], np.uint8), (SIZE, SIZE, 3)))
    with pytest.raises(UserError, match=r"color-coded.*class_dict\.csv"):
        describe(root)
    (root / "class_dict.csv").write_text("name,r,g,b\nsky,1,2,3\nroad,4,5,6\n")
    assert describe(root).description.options["mask_format"] == "color"


def test_no_masks(tmp_path: Path) -> None:
    root = folder(tmp_path)
    for path in root.glob("masks/*/*.png"):
        path.unlink()
    with pytest.raises(UserError, match="no image of the dataset has a mask"):
        describe(root)


def test_toml_comes_back_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "Größe 🌲 'set'", mask_suffix="_mask")
    found = describe(root, classes="a,b,Straße 🌲", ignore_index=255)
    (tmp_path / "sslseg.toml").write_text(toml_text(found), encoding="utf-8")
    assert Workspace.load(tmp_path).description() == found.description
    assert found.description.options == {"mask_suffix": "_mask"}


def test_suggested_keys_are_accepted(tmp_path: Path) -> None:
    text = toml_text(describe(folder(tmp_path / "set"), classes="a,b,c", ignore_index=255))
    text = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    (tmp_path / "sslseg.toml").write_text(text)
    assert Workspace.load(tmp_path).train() == dict(
        method="auto", model="deeplabv3plus_lite0", iterations=2000, batch_size=8, crop=320
    )


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslseg) -> None:
    root = folder(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    done = sslseg("init", "--data", root)
    assert str(done.path) == "sslseg.toml"
    assert "train: 16 images, 16 with a mask" in done.err
    assert "guessed" in done.err
    before = Path("sslseg.toml").read_text()
    refused = sslseg("init", "--data", root, "--classes", "a,b,c")
    assert (refused.code, refused.out, Path("sslseg.toml").read_text()) == (2, "", before)
    assert "--force" in refused.err
    forced = sslseg("init", "--data", root, "--classes", "a,b,c", "--force", "--json")
    assert json.loads(forced.out)["classes"] == ["a", "b", "c"]


def test_ambiguous_masks_are_chosen_by_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslseg) -> None:
    root = folder(tmp_path / "set", mask_suffix="_mask")
    for path in list(root.glob("masks/*/*.png")):
        mask(path.with_name(path.name.replace("_mask", "_edge")))
    monkeypatch.chdir(tmp_path)
    done = sslseg("init", "--data", root)
    assert done.code == 2
    assert "--mask-suffix" in done.err
    assert sslseg("init", "--data", root, "--mask-suffix", "_mask").code == 0


def test_camvid(camvid: Path) -> None:
    found = describe(camvid, ignore_index=11)
    assert (found.description.layout, found.description.num_classes, found.masks) == ("folder", 11, 200)
