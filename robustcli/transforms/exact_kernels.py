"""Compiled loops, bitwise identical to SciPy, scikit-image and imagecorruptions.

Each function computes the same operations as the original function, in the same order and
precision; `tests/transforms/test_exact_kernels.py` compares them. Sources: `scipy/ndimage/src/
ni_interpolation.c` and `ni_splines.c` (interpolation of order 1), `skimage/color/colorconv.py`
(HSV), `imagecorruptions/corruptions.py` (motion blur).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcli.core.compiled import compiled, reads

Floats = NDArray[np.float64]


def zoomed(image: NDArray[Any], factor: float) -> NDArray[Any]:
    """`scipy.ndimage.zoom(image, (factor, factor, 1), order=1)`.

    Args:
        image: (H, W, C), float32 or float64.
        factor: At least 1.
    """
    sizes = [round(side * factor) for side in image.shape[:2]]
    result = np.empty((*sizes, image.shape[2]), image.dtype)
    _zoom(np.ascontiguousarray(image), *_taps(image.shape[0], sizes[0]),
          *_taps(image.shape[1], sizes[1]), result)  # fmt: skip
    return result


def _taps(length: int, size: int) -> tuple[NDArray[np.int64], Floats]:
    """Indices of the first sample for `size` outputs along an axis, and weights of two samples.

    The weights are those of the first sample and the next one. The index is -1 if rounding puts the
    position of the output beyond the end; SciPy sets this output to 0.
    """
    step = (length - 1) / (size - 1) if size > 1 else 1.0
    place = np.arange(size) * step
    first = np.floor(place)
    weight = 1 - (place - first)
    outside = place > length - 1
    first[outside] = -1
    return first.astype(np.int64), np.stack([weight, 1 - weight], axis=1)


@compiled(
    *(f"void({reads(t, 3)}, i8[::1], f8[:,::1], i8[::1], f8[:,::1], {t}[:,:,::1])"
      for t in ("f4", "f8"))
)  # fmt: skip
def _zoom(
    image: NDArray[Any], rows: NDArray[np.int64], row_weights: Floats,
    columns: NDArray[np.int64], column_weights: Floats, result: NDArray[Any],
) -> None:  # fmt: skip
    height, width, channels = image.shape
    for i in range(rows.size):
        top = rows[i]
        below = min(top + 1, height - 1)
        for j in range(columns.size):
            left = columns[j]
            right = min(left + 1, width - 1)
            for c in range(channels):
                if top < 0 or left < 0:
                    result[i, j, c] = 0
                    continue
                value = image[top, left, c] * row_weights[i, 0] * column_weights[j, 0]
                value += image[top, right, c] * row_weights[i, 0] * column_weights[j, 1]
                value += image[below, left, c] * row_weights[i, 1] * column_weights[j, 0]
                value += image[below, right, c] * row_weights[i, 1] * column_weights[j, 1]
                result[i, j, c] = value


def sampled(image: NDArray[np.float32], coordinates: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """`scipy.ndimage.map_coordinates(image, coordinates, order=1, mode="reflect")`.

    Args:
        image: (H, W, C).
        coordinates: Rows, columns and integer channel indices, of equal shapes.
    """
    rows, columns = (np.ravel(c).astype(np.float64, copy=False) for c in coordinates[:2])
    channels = np.ravel(coordinates[2]).astype(np.int64, copy=False)
    result = np.empty(rows.size, np.float32)
    _sample(np.ascontiguousarray(image), rows, columns, channels, result)
    return result.reshape(np.shape(coordinates[0]))


@compiled(f"void({reads('f4', 3)}, f8[::1], f8[::1], i8[::1], f4[::1])")
def _sample(
    image: NDArray[np.float32], rows: Floats, columns: Floats, channels: NDArray[np.int64],
    result: NDArray[np.float32],
) -> None:  # fmt: skip
    height, width = image.shape[:2]
    for n in range(rows.size):
        row, column, channel = rows[n], columns[n], channels[n]
        if row < 0:
            row = row - 2 * height * int(row / (2 * height)) if row < -2 * height else row
            row = row + 2 * height if row < -height else -row - 1
        elif row > height - 1:
            row -= 2 * height * int(row / (2 * height))
            row = 2 * height - row - 1 if row >= height else row
        if column < 0:
            column = (
                column - 2 * width * int(column / (2 * width)) if column < -2 * width else column
            )
            column = column + 2 * width if column < -width else -column - 1
        elif column > width - 1:
            column -= 2 * width * int(column / (2 * width))
            column = 2 * width - column - 1 if column >= width else column
        first_row, first_column = math.floor(row), math.floor(column)
        above, left = 1 - (row - first_row), 1 - (column - first_column)
        below, right = 1 - above, 1 - left
        # Only the indices -1 and `length` are outside; both reflect to their neighbour.
        top, bottom = max(first_row, 0), min(first_row + 1, height - 1)
        start, end = max(first_column, 0), min(first_column + 1, width - 1)
        value = image[top, start, channel] * above * left
        value += image[top, end, channel] * above * right
        value += image[bottom, start, channel] * below * left
        value += image[bottom, end, channel] * below * right
        result[n] = value


def motion_blurred(
    image: NDArray[Any], weights: Floats, rows: Sequence[int], columns: Sequence[int]
) -> Floats:
    """The sum of `weights[i]` times `image` shifted by `rows[i]` and `columns[i]`, edges repeated.

    Args:
        image: (H, W) or (H, W, C), uint8 or float64.
        weights: (N,).
        rows: N shifts down in pixels, less than H in either direction.
        columns: N shifts to the right in pixels, less than W in either direction.
    """
    stack = np.ascontiguousarray(image.reshape(*image.shape[:2], -1))
    result = np.zeros(stack.shape)
    moves = np.array([rows, columns], np.int64)
    _blur_along(stack, np.ascontiguousarray(weights, np.float64), moves, result)
    return result.reshape(image.shape)


@compiled(*(f"void({reads(t, 3)}, f8[::1], i8[:,::1], f8[:,:,::1])" for t in ("u1", "f8")))
def _blur_along(
    image: NDArray[Any], weights: Floats, moves: NDArray[np.int64], result: Floats
) -> None:
    height, width, channels = image.shape
    for i in range(height):
        target = result[i].ravel()
        for n in range(moves.shape[1]):
            source = image[min(max(i - moves[0, n], 0), height - 1)].ravel()
            weight, move = weights[n], moves[1, n]
            first, end = max(move, 0) * channels, (width + min(move, 0)) * channels
            for k in range(first):
                target[k] += weight * source[k % channels]
            # Slices that start at 0: with an index offset, the loop would not be vectorised.
            middle, moved = target[first:end], source[max(-move, 0) * channels :]
            for k in range(middle.size):
                middle[k] += weight * moved[k]
            for k in range(end, target.size):
                target[k] += weight * source[(width - 1) * channels + k % channels]


def hsv(image: Floats) -> Floats:
    """`skimage.color.rgb2hsv(image)` for images (H, W, 3) in [0, 1]."""
    result = np.empty(image.shape)
    _to_hsv(np.ascontiguousarray(image).reshape(-1, 3), result.reshape(-1, 3))
    return result


@compiled(f"void({reads('f8', 2)}, f8[:,::1])")
def _to_hsv(pixels: Floats, result: Floats) -> None:
    for n in range(pixels.shape[0]):
        red, green, blue = pixels[n]
        value = max(red, green, blue)
        delta = value - min(red, green, blue)
        hue = saturation = 0.0
        if delta != 0:
            saturation = delta / value
            if blue == value:
                hue = 4.0 + (red - green) / delta
            elif green == value:
                hue = 2.0 + (blue - red) / delta
            else:
                hue = (green - blue) / delta
            hue = hue / 6.0
            hue -= math.trunc(hue)
            if hue < 0:
                hue += 1.0
        result[n, 0], result[n, 1], result[n, 2] = hue, saturation, value


def rgb(image: Floats) -> Floats:
    """`skimage.color.hsv2rgb(image)` for images (H, W, 3) in [0, 1]."""
    result = np.empty(image.shape)
    _to_rgb(np.ascontiguousarray(image).reshape(-1, 3), result.reshape(-1, 3))
    return result


@compiled(f"void({reads('f8', 2)}, f8[:,::1])")
def _to_rgb(pixels: Floats, result: Floats) -> None:
    for n in range(pixels.shape[0]):
        hue, saturation, value = pixels[n]
        sector = math.floor(hue * 6)
        fraction = hue * 6 - sector
        low = value * (1 - saturation)
        falling = value * (1 - fraction * saturation)
        rising = value * (1 - (1 - fraction) * saturation)
        case = int(sector) % 6
        if case == 0:
            red, green, blue = value, rising, low
        elif case == 1:
            red, green, blue = falling, value, low
        elif case == 2:
            red, green, blue = low, value, rising
        elif case == 3:
            red, green, blue = low, falling, value
        elif case == 4:
            red, green, blue = rising, low, value
        else:
            red, green, blue = value, low, falling
        result[n, 0], result[n, 1], result[n, 2] = red, green, blue


def warped(
    image: NDArray[np.uint8], pixels: NDArray[np.int32], places: Floats
) -> NDArray[np.uint8]:
    """Samples `image` at `places` (bilinear, 0 outside) and writes the values to `pixels`.

    The other pixels of the result are 0. Equal to `skimage.transform.warp` of order 1 with a
    transform that is not a single matrix, rounded half to even.

    Args:
        image: (H, W, C).
        pixels: Rows and columns of output pixels, (2, N).
        places: Columns and rows of the sampled positions, (N, 2 or more).
    """
    result = np.zeros(image.shape, np.uint8)
    _warp(np.ascontiguousarray(image), pixels, places, result)
    return result


@compiled(f"void({reads('u1', 3)}, i4[:,::1], f8[:,::1], u1[:,:,::1])")
def _warp(
    image: NDArray[np.uint8], pixels: NDArray[np.int32], places: Floats, result: NDArray[np.uint8]
) -> None:
    height, width, channels = image.shape
    for n in range(pixels.shape[1]):
        column, row = places[n, 0], places[n, 1]
        if not (-1 < column < width and -1 < row < height):
            continue
        left, top = math.floor(column), math.floor(row)
        above, before = 1 - (row - top), 1 - (column - left)
        below, behind = 1 - above, 1 - before
        # A neighbour outside is 0: its weight is set to 0, with an arbitrary pixel in its place.
        if top < 0:
            top, above = 0, 0.0
        if left < 0:
            left, before = 0, 0.0
        bottom, right = math.floor(row) + 1, math.floor(column) + 1
        if bottom >= height:
            bottom, below = top, 0.0
        if right >= width:
            right, behind = left, 0.0
        for c in range(channels):
            value = image[top, left, c] * above * before
            value += image[top, right, c] * above * behind
            value += image[bottom, left, c] * below * before
            value += image[bottom, right, c] * below * behind
            result[pixels[0, n], pixels[1, n], c] = np.rint(value)


def picked(
    labels: NDArray[np.int32], pixels: NDArray[np.int32], places: Floats
) -> NDArray[np.int32]:
    """Like `warped`, for labels (H, W, C), with nearest-neighbour sampling."""
    height, width = labels.shape[:2]
    columns, rows = np.floor(places[:, :2].T + 0.5)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    result = np.zeros(labels.shape, np.int32)
    sources = rows[inside].astype(np.intp), columns[inside].astype(np.intp)
    result[pixels[0, inside], pixels[1, inside]] = labels[sources]
    return result
