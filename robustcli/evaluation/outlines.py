"""The outline of a mask, drawn on its image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COLOUR = (255, 214, 10)  # a yellow that stands out on grey, blue and violet alike
TINT = 0.25  # share of the colour inside the outline
Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def outlined(image: Pixels, mask: Mask) -> Pixels:
    """A copy of `image` (H, W, 3) with the outline of `mask` (H, W) in COLOUR.

    The line is one pixel wide up to 512 pixels of the image's shorter side, and grows from there.
    """
    drawn = image.copy()
    drawn[outline(mask, min(mask.shape) // 512 + 1)] = COLOUR
    return drawn


def overlaid(image: Pixels, mask: Mask) -> Pixels:
    """A copy of `image` (H, W, 3) with `mask` (H, W) tinted and outlined in COLOUR."""
    tinted = image.copy()
    tinted[mask] = np.rint((1 - TINT) * image[mask] + TINT * np.array(COLOUR)).astype(np.uint8)
    return outlined(tinted, mask)


def outline(mask: Mask, width: int = 1) -> Mask:
    """The pixels of `mask` within `width` steps of a pixel outside it, or of the image's end."""
    inner = mask
    for _ in range(width):
        inner = _eroded(inner)
    return mask & ~inner


def _eroded(mask: Mask) -> Mask:
    framed = np.pad(mask, 1)
    inner: Mask = mask & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2]
    return inner & framed[1:-1, 2:]
