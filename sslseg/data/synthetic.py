"""The built-in synthetic dataset: textured toy shapes; a seed determines every pixel.

Every class has a few styles (colors and a texture), some frequent and some rare; colors and textures overlap between
classes. So a network must learn many combinations of style and shape: the full training set shows all of them, a sixteenth
of it does not, but the other, unlabeled images do. Shapes occlude each other, light and color cast change from image to
image, sticks are a few pixels wide, and the background is textured too.
"""

from __future__ import annotations

import colorsys
import functools
import json
import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from sslseg.data.labels import color_map
from sslseg.errors import UserError
from sslseg.progress import track

CLASSES = ("background", "disc", "box", "triangle", "ring", "cross", "stick")
PALETTE = ((0, 0, 0), *color_map(len(CLASSES) - 1))
FREQUENCIES = (0.24, 0.21, 0.17, 0.15, 0.12, 0.11)
TEXTURES = ("plain", "stripes", "checker", "dots", "grid", "gradient")
SIZE, TRAIN, VAL = 96, 512, 128
MARKER, VERSION = "shapes.json", 1

STYLES, STYLE_SEED, STYLE_DECAY = 6, 20240501, 0.6
HUE_SPREAD, OWN_TEXTURE = 0.035, 0.95
OBJECTS = (3, 6)
RADIUS = (16.0, 34.0)
NOISE, CAST, SHADE = (2, 8), 16, (-50, 30)
SUBPIXEL_BITS = 4


class Style(NamedTuple):
    """Texture and two HSV colors of a class, and the period of the texture in pixels."""

    texture: str
    first: tuple[float, float, float]
    second: tuple[float, float, float]
    period: int


@functools.cache
def styles() -> tuple[tuple[Style, ...], ...]:
    """Return the styles of every class but the background; they are the same for every seed."""
    rng = np.random.default_rng(STYLE_SEED)
    table = []
    for index in range(len(CLASSES) - 1):
        own_styles = []
        for _ in range(STYLES):
            own = rng.random() < OWN_TEXTURE
            texture = TEXTURES[index if own else rng.integers(len(TEXTURES))]
            hue = index / (len(CLASSES) - 1) + rng.normal() * HUE_SPREAD
            second_hue = hue + rng.uniform(-0.12, 0.12) if rng.random() < 0.6 else rng.random()
            first = (hue, rng.uniform(0.25, 0.95), rng.uniform(0.35, 0.95))
            second = (second_hue, rng.uniform(0.1, 0.9), rng.uniform(0.2, 0.9))
            own_styles.append(Style(texture, first, second, int(rng.integers(4, 10))))
        table.append(tuple(own_styles))
    return tuple(table)


def draw(index: int, *, seed: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draw image ``index`` of the dataset with this seed: BGR size x size x 3 and class indices size x size, both uint8."""
    rng = np.random.default_rng([seed, index])
    mask = np.zeros((size, size), np.uint8)
    image = _background(rng, size)
    rarity = 1.0 / np.arange(1, STYLES + 1) ** STYLE_DECAY
    rarity /= rarity.sum()
    for _ in range(int(rng.integers(*OBJECTS))):
        kind = 1 + int(rng.choice(len(FREQUENCIES), p=FREQUENCIES))
        style = styles()[kind - 1][int(rng.choice(STYLES, p=rarity))]
        inside = _outline(rng, CLASSES[kind], size)
        blend = _texture(rng, style.texture, style.period + int(rng.integers(-1, 2)), size)
        image[inside] = _mix(_color(rng, style.first), _color(rng, style.second), blend)[inside]
        mask[inside] = kind
    return _photograph(rng, image), mask


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    hue = rng.random()
    first = _bgr(hue, rng.uniform(0, 0.45), rng.uniform(0.15, 0.9))
    second = _bgr(hue + rng.uniform(-0.15, 0.15), rng.uniform(0, 0.45), rng.uniform(0.15, 0.9))
    texture = TEXTURES[rng.integers(len(TEXTURES))]
    blend = _texture(rng, texture, int(rng.integers(4, 14)), size) * int(rng.integers(40, 160)) // 255
    return _mix(first, second, blend) + _clouds(rng, size, cells=5, amplitude=40)[..., None]


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Apply uneven light, a color cast, sometimes blur, and noise."""
    image = image + _clouds(rng, len(image), cells=3, amplitude=int(rng.integers(0, 50)))[..., None]
    gain = 256 + rng.integers(-CAST, CAST + 1, 3) + int(rng.integers(*SHADE))
    image = np.clip(image * gain // 256, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (3, 3), 0)
    level = int(rng.integers(*NOISE))
    noise = rng.integers(-level, level + 1, (2, *image.shape)).sum(axis=0)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _outline(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """Return the pixels inside a shape of random position, size, rotation and aspect ratio."""
    center = rng.uniform(4, size - 4, 2)
    radius = math.exp(rng.uniform(math.log(RADIUS[0]), math.log(RADIUS[1])))
    angle, aspect = rng.random() * 2 * math.pi, rng.uniform(0.6, 1.0)
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    mask = np.zeros((size, size), np.uint8)

    def fill(points: Iterable[tuple[float, float]], value: int = 1) -> None:
        corners = np.asarray(list(points)) @ rotation + center
        fixed = np.rint(corners * (1 << SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(mask, [fixed], value, lineType=cv2.LINE_8, shift=SUBPIXEL_BITS)

    def rectangle(half_width: float, half_height: float) -> list[tuple[float, float]]:
        signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        return [(x * half_width, y * half_height) for x, y in signs]

    def ellipse(factor: float) -> list[tuple[float, float]]:
        angles = np.linspace(0, 2 * math.pi, 32, endpoint=False)
        return [(factor * radius * math.cos(a), factor * radius * aspect * math.sin(a)) for a in angles]

    if name == "disc":
        fill(ellipse(1.0))
    elif name == "box":
        fill(rectangle(0.85 * radius, 0.85 * radius * aspect))
    elif name == "triangle":
        fill((1.15 * radius * math.cos(a), 1.15 * radius * aspect * math.sin(a)) for a in (0.0, 2.1, 4.2))
    elif name == "ring":
        fill(ellipse(1.0))
        fill(ellipse(1 - max(5.5, 0.42 * radius) / radius), 0)
    elif name == "cross":
        arm = max(3.0, 0.3 * radius)
        fill(rectangle(radius, arm))
        fill(rectangle(arm, radius))
    elif name == "stick":
        fill(rectangle(1.5 * radius, rng.uniform(3.6, 5.2)))
    else:
        raise ValueError(f"no outline for {name!r}")
    return mask > 0


def _texture(rng: np.random.Generator, name: str, period: int, size: int) -> np.ndarray:
    """Return blend weights 0..255, size x size, of a randomly rotated and shifted pattern."""
    angle = rng.random() * 2 * math.pi
    cosine, sine = round(1024 * math.cos(angle)), round(1024 * math.sin(angle))
    y, x = np.mgrid[:size, :size].astype(np.int32)
    u = ((x * cosine + y * sine) >> 10) + int(rng.integers(64)) + 1024
    v = ((y * cosine - x * sine) >> 10) + int(rng.integers(64)) + 1024
    half = max(period // 2, 2)
    if name == "plain":
        return np.zeros((size, size), np.int32)
    if name == "gradient":
        return np.abs((u * 8) % 510 - 255)
    patterns = {
        "stripes": (u // half) & 1,
        "checker": ((u // half) + (v // half)) & 1,
        "dots": (u % period - half) ** 2 + (v % period - half) ** 2 <= period * period // 9,
        "grid": (u % period < 2) | (v % period < 2),
    }
    return patterns[name].astype(np.int32) * 255


def _clouds(rng: np.random.Generator, size: int, *, cells: int, amplitude: int) -> np.ndarray:
    grid = rng.integers(0, 256, (cells, cells)).astype(np.uint8)
    smooth = cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR_EXACT).astype(np.int32)
    return (smooth - 128) * amplitude // 128


def _mix(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return (first * (255 - weight[..., None]) + second * weight[..., None]) // 255


def _color(rng: np.random.Generator, hsv: tuple[float, float, float]) -> np.ndarray:
    spread = rng.uniform(-1, 1, 3) * (0.02, 0.06, 0.08)
    return _bgr(*(np.asarray(hsv) + spread))


def _bgr(hue: float, saturation: float, value: float) -> np.ndarray:
    rgb = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return np.array([round(channel * 255) for channel in rgb[::-1]], np.int32)


def ensure(root: Path, *, seed: int = 0, train: int = TRAIN, val: int = VAL) -> None:
    """Write the dataset to ``root`` in the ``folder`` layout, unless it is there already.

    It is written beside ``root`` and renamed when complete, so an interruption leaves no part of it.

    Raises:
        UserError: ``root`` holds something else, or this dataset with another seed, size or version.
    """
    identity = dict(format="sslseg-shapes", version=VERSION, seed=seed, train=train, val=val)
    if root.exists():
        _check(root, identity)
        return
    from sslseg.evaluation.figures import save_image, save_palette_png

    partial = root.with_name(f".{root.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for index in track(range(train + val), "draw shapes", total=train + val):
            side = "train" if index < train else "val"
            image, mask = draw(index, seed=seed)
            save_image(partial / "images" / side / f"{index:06d}.png", image)
            save_palette_png(partial / "masks" / side / f"{index:06d}.png", mask, PALETTE)
        (partial / MARKER).write_text(json.dumps(identity) + "\n")
        try:
            partial.rename(root)
        except OSError:
            # Another process (a rank, a parallel job) was first.
            _check(root, identity)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(root: Path, identity: dict[str, Any]) -> None:
    try:
        found = json.loads((root / MARKER).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{root} exists and is not the built-in synthetic dataset; move it away or give another folder with --data"
        ) from error
    if found != identity:
        differing = next(key for key in identity if found.get(key) != identity[key])
        raise UserError(
            f"{root} holds the built-in synthetic dataset with {differing} {found.get(differing)!r}, not {identity[differing]!r};"
            " remove the folder to recreate it"
        )
