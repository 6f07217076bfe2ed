"""Pictures to look at: palette masks, overlays, panels of truth and error, the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

Palette = Sequence[Sequence[int]]
ERROR_COLOR, IGNORED_COLOR = (0, 0, 255), (128, 128, 128)  # BGR
GAP = 4


def colorize(mask: np.ndarray, palette: Palette) -> np.ndarray:
    """Paint a mask H x W of class indices with the RGB ``palette``; other values become gray. Returns BGR H x W x 3."""
    colors = np.asarray(palette, np.uint8)[:, ::-1]
    painted = np.full((*mask.shape, 3), IGNORED_COLOR, np.uint8)
    valid = mask < len(colors)
    painted[valid] = colors[mask[valid]]
    return painted


def overlay(image: np.ndarray, mask: np.ndarray, palette: Palette, *, opacity: float = 0.5) -> np.ndarray:
    """Blend a mask's colors over the BGR image."""
    return cv2.addWeighted(image, 1 - opacity, colorize(mask, palette), opacity, 0)


def heat(image: np.ndarray, score: np.ndarray, *, opacity: float = 0.6) -> np.ndarray:
    """Blend a score map, H x W in [0, 1], over the BGR image: dark where it is 0, bright where it is 1."""
    colors = cv2.applyColorMap(np.rint(np.clip(score, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return cv2.addWeighted(image, 1 - opacity, colors, opacity, 0)


def save_palette_png(path: Path, mask: np.ndarray, palette: Palette) -> None:
    """Write a mask as PNG whose pixels are class indices: with a palette if it is uint8, else as 16-bit gray."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mask.dtype != np.uint8:
        save_image(path, mask)
        return
    picture = Image.fromarray(mask)
    # All 256 entries, or Pillow would pack the indices into fewer bits and lose the ignore value.
    colors = np.full((256, 3), IGNORED_COLOR, np.uint8)
    colors[: len(palette)] = palette
    picture.putpalette(colors.flatten().tolist())
    picture.save(path)


def save_image(path: Path, image: np.ndarray) -> None:
    """Write a BGR or gray image; raise OSError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(path.suffix, image)
    if not done:
        raise OSError(f"OpenCV cannot encode {path}")
    path.write_bytes(data.tobytes())


def save_panel(
    path: Path,
    image: np.ndarray,
    label: Tensor,
    mask: Tensor,
    *,
    palette: Palette,
    crop: tuple[int, int] | None = None,
    scores: Sequence[np.ndarray] = (),
) -> None:
    """Write image, truth, prediction, errors (red; gray: ignored) and ``scores`` (as heat maps) side by side."""
    truth, predicted = label.cpu().numpy(), mask.cpu().numpy()
    if crop is not None:
        top, left = ((image.shape[axis] - truth.shape[axis]) // 2 for axis in (0, 1))
        image = image[top : top + truth.shape[0], left : left + truth.shape[1]]
    ignored = truth >= len(palette)
    error = image // 2
    error[(truth != predicted) & ~ignored] = ERROR_COLOR
    error[ignored] = IGNORED_COLOR
    gap = np.full((image.shape[0], GAP, 3), 255, np.uint8)
    parts = [
        image,
        colorize(truth, palette),
        colorize(predicted, palette),
        error,
        *(heat(image, score) for score in scores),
    ]
    save_image(path, np.concatenate([part for panel in parts for part in (panel, gap)][:-1], axis=1))


def save_confusion(path: Path, confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Plot the confusion matrix, each row (true class) in percent."""
    from matplotlib.figure import Figure

    counts = np.asarray(confusion, float)
    percentages = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 0.55 * len(classes) + 2)
    figure = Figure(figsize=(side + 1, side), dpi=100)
    axes = figure.subplots()
    picture = axes.imshow(percentages, cmap="viridis", vmin=0, vmax=100)
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if len(classes) <= 25:
        for row, column in np.ndindex(*percentages.shape):
            if percentages[row, column] >= 0.5:
                color = "white" if percentages[row, column] < 60 else "black"
                axes.text(
                    column,
                    row,
                    f"{percentages[row, column]:.0f}",
                    ha="center",
                    va="center",
                    color=color,
                    fontsize=8,
                )
    figure.colorbar(picture, label="pixels of the true class (%)", fraction=0.046)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
