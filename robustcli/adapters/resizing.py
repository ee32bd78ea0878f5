"""Pillow's resize followed by a centre crop, in one step with identical pixels.

Pillow resizes the complete image and converts it to and from four bytes per pixel. Here only the
pixels of the crop are computed, which takes a third of the time.

Source: `src/libImaging/Resample.c` of Pillow: a horizontal pass, rounded to bytes, then a vertical
pass, with fixed-point weights of 22 fractional bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustcli.core.compiled import compiled, reads

Bytes = NDArray[np.uint8]
_BITS = 22
# Pillow does the vertical pass first if that is less work: version 13.0 does so for images twice as
# high as wide, and if the height shrinks more than the width.
_MOST_ASPECT = 1.9


def _triangle(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(distance < 1, 1 - distance, 0)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic kernel with a = -0.5."""
    a = -0.5
    inner = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    outer = (((distance - 5) * distance + 8) * distance - 4) * a
    return np.where(distance < 1, inner, np.where(distance < 2, outer, 0))


_FILTERS: dict[
    Image.Resampling, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]
] = {
    Image.Resampling.BILINEAR: (_triangle, 1.0),
    Image.Resampling.BICUBIC: (_cubic, 2.0),
}
"""Kernel of each filter, and its support: the distance from which the weight is 0."""


def resized_centre(
    image: Bytes, size: tuple[int, int], side: int, resampling: Image.Resampling
) -> Bytes | None:
    """The central square of `image` after Pillow's resize, (side, side, 3); None if not supported.

    Args:
        image: (H, W, 3).
        size: Width and height after the resize; both must differ from those of `image`, with the
            same aspect ratio except for rounding.
        side: Side of the square in pixels.
        resampling: Pillow's filter.
    """
    height, width = image.shape[:2]
    if (
        resampling not in _FILTERS
        or max(height, width) > _MOST_ASPECT * min(height, width)
        or (size[0] < width) != (size[1] < height)
        or side > min(size) or size[0] == width or size[1] == height
        or not _is_pillows(resampling)
    ):  # fmt: skip
        return None
    return _resized_centre(image, size, side, resampling)


@cache
def _is_pillows(resampling: Image.Resampling) -> bool:
    """Whether the installed Pillow computes the same pixels, for landscape and portrait images."""
    noise = np.random.default_rng(0).integers(0, 256, (57, 31, 3), np.uint8)
    for image, size in ((noise, (20, 37)), (np.rot90(noise), (37, 20)), (noise, (40, 74))):
        expected = np.asarray(Image.fromarray(image).resize(size, resampling))
        side = min(size)
        top, left = round((size[1] - side) / 2), round((size[0] - side) / 2)
        centre = expected[top : top + side, left : left + side]
        if not np.array_equal(_resized_centre(image, size, side, resampling), centre):
            return False
    return True


def _resized_centre(
    image: Bytes, size: tuple[int, int], side: int, resampling: Image.Resampling
) -> Bytes:
    columns, rows = (
        _taps(before, after, resampling)
        for before, after in zip(image.shape[1::-1], size, strict=True)
    )
    across, down = (
        slice(round((length - side) / 2), round((length - side) / 2) + side) for length in size
    )
    result = np.empty((side, side, 3), np.uint8)
    _resize(
        np.ascontiguousarray(image),
        columns[0][across], columns[1][across], columns[2][across],
        rows[0][down], rows[1][down], rows[2][down],
        result,
    )  # fmt: skip
    return result


@lru_cache(maxsize=64)
def _taps(
    before: int, after: int, resampling: Image.Resampling
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """First sample, number of samples and weights of each output pixel along one axis."""
    weight_at, support = _FILTERS[resampling]
    scale = before / after
    stretch = max(scale, 1.0)
    support *= stretch
    centres = (np.arange(after) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int32), 0)
    count = np.minimum((centres + support + 0.5).astype(np.int32), before) - first
    samples = np.arange(math.ceil(support) * 2 + 1)
    distances = (samples + first[:, None] - centres[:, None] + 0.5) * (1 / stretch)
    weights = np.where(samples < count[:, None], weight_at(np.abs(distances)), 0)
    total = np.zeros(after)
    for column in weights.T:  # in Pillow's order of summation
        total += column
    weights /= total[:, None]
    fixed = np.trunc(np.where(weights < 0, -0.5, 0.5) + weights * (1 << _BITS))
    return first, count, fixed.astype(np.int32)


@compiled(
    f"void({reads('u1', 3)}, i4[::1], i4[::1], i4[:,::1], i4[::1], i4[::1], i4[:,::1], u1[:,:,::1])"
)
def _resize(
    image: Bytes, first_columns: NDArray[Any], column_counts: NDArray[Any],
    column_weights: NDArray[Any], first_rows: NDArray[Any], row_counts: NDArray[Any],
    row_weights: NDArray[Any], result: Bytes,
) -> None:  # fmt: skip
    height, width = result.shape[:2]
    top = first_rows[0]
    needed = first_rows[height - 1] + row_counts[height - 1] - top
    half = np.int32(1 << (_BITS - 1))
    narrow = np.empty((needed, 3 * width), np.uint8)
    for i in range(needed):
        line = image[top + i]
        for j in range(width):
            samples = line[first_columns[j] : first_columns[j] + column_counts[j]]
            red = green = blue = half
            for k in range(samples.shape[0]):
                weight = column_weights[j, k]
                red += samples[k, 0] * weight
                green += samples[k, 1] * weight
                blue += samples[k, 2] * weight
            narrow[i, 3 * j] = min(max(red >> _BITS, 0), 255)
            narrow[i, 3 * j + 1] = min(max(green >> _BITS, 0), 255)
            narrow[i, 3 * j + 2] = min(max(blue >> _BITS, 0), 255)
    sums = np.empty(3 * width, np.int32)
    for i in range(height):
        sums[:] = half
        for k in range(row_counts[i]):
            weight = row_weights[i, k]
            line_bytes = narrow[first_rows[i] - top + k]
            for n in range(sums.size):
                sums[n] += np.int32(line_bytes[n]) * weight
        row = result[i].ravel()
        for n in range(sums.size):
            row[n] = min(max(sums[n] >> _BITS, 0), 255)
