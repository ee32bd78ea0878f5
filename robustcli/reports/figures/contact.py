"""The contact sheet: what each transform does to one photo of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from robustcli.reports.figures.canvas import GREY, save, styled, wrapped

# Inches: a tile with its gap, a line of text above it, the gap between tiles.
SIDE = 1.8
LINE = 0.14
GAP = 0.12
TALLEST = 1.5
# Photos do not compress: 95 tiles take 6 MB so, and twice that at the resolution of plots.
PHOTO_DPI = 100


@dataclass(frozen=True)
class Tile:
    """One picture and the text above it; a picture that is not there leaves a grey box."""

    picture: Path
    title: str
    note: str


def draw_contact(lines: Sequence[Sequence[Tile]], path: Path) -> None:
    """Draws `lines` of tiles, all tiles of one size.

    Args:
        lines: At least one line with at least one tile.
        path: The PNG to write.
    """
    columns = max(len(line) for line in lines)
    pictures = [[_pixels(tile.picture) for tile in line] for line in lines]
    width = columns * SIDE
    label = LINE * max(_text(tile).count("\n") + 1 for line in lines for tile in line) + GAP
    tall = (SIDE - GAP) * _aspect(pictures) + label
    with styled():
        figure = Figure(figsize=(width, tall * len(lines)))
        for row, line in enumerate(lines):
            for column, tile in enumerate(line):
                left = (column * SIDE + GAP / 2) / width
                bottom = 1 - (row + 1) / len(lines)
                size = ((SIDE - GAP) / width, (1 - label / tall) / len(lines))
                _tile(figure, (left, bottom, *size), tile, pictures[row][column])
    save(figure, path, PHOTO_DPI)


def _tile(
    figure: Figure,
    place: tuple[float, float, float, float],
    tile: Tile,
    pixels: NDArray[np.uint8] | None,
) -> None:
    axes = figure.add_axes(place)
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(pixels is None)
    axes.spines[:].set_color("#bbbbbb")
    if pixels is None:
        axes.text(0.5, 0.5, "no sample", ha="center", va="center", color=GREY)
    else:
        axes.imshow(pixels, aspect="equal")
    axes.set_title(_text(tile), fontsize=7.5, pad=3, linespacing=1.15)


def _text(tile: Tile) -> str:
    return f"{wrapped(tile.title, 24)}\n{tile.note}"


def _pixels(path: Path) -> NDArray[np.uint8] | None:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError:
        return None


def _aspect(pictures: Sequence[Sequence[NDArray[np.uint8] | None]]) -> float:
    """Height over width of the tallest picture, at most TALLEST; a taller one is drawn narrower."""
    sizes = [pixels.shape for line in pictures for pixels in line if pixels is not None]
    return min(TALLEST, max((height / width for height, width, _ in sizes), default=1.0))
