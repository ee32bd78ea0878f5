"""Square windows out of images of any size: a random one for training, all for validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robustcli.core.seeds import identity_seed
from robustcli.training.batches.cache import Pixels




@dataclass(frozen=True)
class Tile:
    """A window of an image, and what of it counts.

    Args:
        top: First row of the window in the image.
        left: First column.
        first_row: The first row of the window that counts.
        first_column: The first column that does.
        rows: How many rows count.
        columns: How many columns.
    """

    top: int
    left: int
    first_row: int
    first_column: int
    rows: int
    columns: int


def tiles(height: int, width: int, side: int) -> Iterator[Tile]:
    """Windows of `side` pixels that count every pixel of an image once.

    Where windows overlap, the earlier one counts. An image smaller than a window is padded.
    """
    for top, first_row, rows in _spans(height, side):
        for left, first_column, columns in _spans(width, side):
            yield Tile(top, left, first_row, first_column, rows, columns)


def _spans(length: int, side: int) -> Iterator[tuple[int, int, int]]:
    """Start of each window, and the first and the number of its pixels that count."""
    if length <= side:
        yield 0, (side - length) // 2, length
        return
    count = -(-length // side)
    counted = 0
    for i in range(count):
        start = round(i * (length - side) / (count - 1))
        yield start, counted - start, start + side - counted
        counted = start + side


def window(pixels: Pixels, top: int, left: int, side: int) -> Pixels:
    """The window of `pixels` (H, W, ...) at `top`, `left`; a smaller image in the middle of it.

    It is continued by reflection, as prediction does it, and so is the mask: what the network sees
    there is foreground all the same.
    """
    part = pixels[top : top + side, left : left + side]
    short = [side - length for length in part.shape[:2]]
    if not any(short):
        return part
    pads = [(missing // 2, missing - missing // 2) for missing in short]
    return np.pad(part, pads + [(0, 0)] * (part.ndim - 2), mode="reflect")


def random_place(height: int, width: int, side: int, *identity: object) -> tuple[int, int]:
    """Top and left of a training window, drawn from `identity` alone, every place as likely."""
    rng = np.random.default_rng(identity_seed("window", *identity))
    top = int(rng.integers(0, max(0, height - side) + 1))
    return top, int(rng.integers(0, max(0, width - side) + 1))
