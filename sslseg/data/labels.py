"""Class indices as the whole program uses them, 0..C-1 and one ignore value; and their colors."""

from __future__ import annotations

from sslseg.errors import UserError

MAX_CLASSES = 65534
IGNORE_INDEX, WIDE_IGNORE_INDEX = 255, 65535

Color = tuple[int, int, int]


def ignore_value(num_classes: int) -> int:
    """Return the value of ignored pixels in every mask in memory and in stores: 255, or 65535 over 255 classes."""
    if not 1 <= num_classes <= MAX_CLASSES:
        raise UserError(f"{num_classes} classes are out of range; give 1 to {MAX_CLASSES} class names")
    return IGNORE_INDEX if num_classes <= IGNORE_INDEX else WIDE_IGNORE_INDEX


def color_map(count: int) -> tuple[Color, ...]:
    """Return ``count`` distinct RGB colors, far apart for nearby indices: PASCAL VOC's color map without black."""
    colors = []
    for index in range(1, count + 1):
        channels = [0, 0, 0]
        for bit in range(24):
            # Bit k of the index goes to channel k mod 3, the lowest bits to the highest bits of the color.
            channels[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
        colors.append((channels[0], channels[1], channels[2]))
    return tuple(colors)


def default_palette(classes: tuple[str, ...]) -> tuple[Color, ...]:
    """Return a color for each class; a first class named background is black."""
    if classes and classes[0].lower() in ("background", "bg"):
        return ((0, 0, 0), *color_map(len(classes) - 1))
    return color_map(len(classes))
