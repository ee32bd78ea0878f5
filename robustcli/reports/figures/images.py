"""Figures made of images: the contact sheet of transforms, and single cases with outlines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image

from robustcli.data.mask_values import IGNORED
from robustcli.reports.figures.canvas import GREY, save_figure, styled, wrapped

# The contact sheet: one photo of the run under each transform.


# Inches: a tile with its gap, a line of text above it, the gap between tiles.
CONTACT_SIDE = 1.8
CONTACT_LINE = 0.14
CONTACT_GAP = 0.12
TALLEST = 1.5  # largest height over width of an image that is drawn at full width
# Photos compress badly: 95 tiles take 6 MB, and twice that at the resolution of plots.
PHOTO_DPI = 100


@dataclass(frozen=True)
class Tile:
    """An image and the text above it; a missing file is drawn as a grey box.

    `picture` is a file, or pixels: uint8 (H, W, 3).
    """

    picture: Path | NDArray[np.uint8]
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
    width = columns * CONTACT_SIDE
    label = (
        CONTACT_LINE * max(_text(tile).count("\n") + 1 for line in lines for tile in line)
        + CONTACT_GAP
    )
    tall = (CONTACT_SIDE - CONTACT_GAP) * _tallest_aspect(pictures) + label
    with styled():
        figure = Figure(figsize=(width, tall * len(lines)))
        for row, line in enumerate(lines):
            for column, tile in enumerate(line):
                left = (column * CONTACT_SIDE + CONTACT_GAP / 2) / width
                bottom = 1 - (row + 1) / len(lines)
                size = ((CONTACT_SIDE - CONTACT_GAP) / width, (1 - label / tall) / len(lines))
                _tile(figure, (left, bottom, *size), tile, pictures[row][column])
    save_figure(figure, path, PHOTO_DPI)


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


def _pixels(source: Path | NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    if isinstance(source, np.ndarray):
        return source
    try:
        with Image.open(source) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError:
        return None


def _tallest_aspect(pictures: Sequence[Sequence[NDArray[np.uint8] | None]]) -> float:
    """Height over width of the tallest image, at most TALLEST; taller ones are drawn narrower."""
    sizes = [pixels.shape for line in pictures for pixels in line if pixels is not None]
    return min(TALLEST, max((height / width for height, width, _ in sizes), default=1.0))


# Single cases: the image, the true and the predicted outline, and their differences.


# Inches: a picture with its gap, a line of text above it, the heading and the legend.
PANEL_SIDE, PANEL_GAP, PANEL_LINE, HEAD, FOOT = 2.1, 0.1, 0.27, 0.3, 0.34
PANEL_DPI = 110
TITLES = ("image", "true outline", "predicted outline", "differences")
TITLES_OF_CLASSES = ("image", "true classes", "predicted classes", "differences")
_CLASSES_ABREAST = 6  # classes per line of the legend
# White, light blue, dark orange on near black: distinct in greyscale and for every colour vision.
FOUND, MISSED, ALARM, CONFUSED = "#FFFFFF", "#86CBF2", "#A83C00", "#F0E442"
DIMMED = 0.15
TRUE, CALLED = "#56B4E9", "#E69F00"


@dataclass(frozen=True)
class Case:
    """One image, uint8 (H, W, 3), with its true and its predicted mask, (H, W).

    Masks are bool. With `classes` (name and colour `#rrggbb` of each), masks contain class numbers,
    0 for background and `IGNORED` for pixels that are not scored.
    """

    title: str
    image: NDArray[np.uint8]
    truth: NDArray[Any]
    prediction: NDArray[Any]
    classes: tuple[tuple[str, str], ...] = ()


def draw_panels(cases: Sequence[Case], path: Path) -> None:
    """Draws a row of four images per case.

    Args:
        cases: At least one, all with the same classes.
        path: The PNG to write.
    """
    classes = cases[0].classes
    foot = FOOT * (1 + -(-len(classes) // _CLASSES_ABREAST))
    titles = TITLES_OF_CLASSES if classes else TITLES
    tall = [(PANEL_SIDE - PANEL_GAP) * min(TALLEST, _case_aspect(case)) for case in cases]
    width, height = (
        PANEL_SIDE * len(TITLES),
        HEAD + foot + sum(tall) + (PANEL_LINE + PANEL_GAP) * len(cases),
    )
    with styled():
        figure = Figure(figsize=(width, height))
        for column, title in enumerate(titles):
            x = (column + 0.5) * PANEL_SIDE / width
            figure.text(x, 1 - 0.08 / height, title, ha="center", va="top", fontweight="bold")
        top = height - HEAD
        for case, high in zip(cases, tall, strict=True):
            text = (PANEL_GAP / 2 / width, (top - 0.05) / height)
            figure.text(*text, case.title, ha="left", va="top", fontsize=8)
            top -= PANEL_LINE
            for column in range(len(TITLES)):
                left = (column * PANEL_SIDE + PANEL_GAP / 2) / width
                size = ((PANEL_SIDE - PANEL_GAP) / width, high / height)
                _picture(figure.add_axes((left, (top - high) / height, *size)), case, column)
            top -= high + PANEL_GAP
        _legend(figure, classes)
    save_figure(figure, path, PANEL_DPI)


def _case_aspect(case: Case) -> float:
    return case.image.shape[0] / case.image.shape[1]


def _picture(axes: Axes, case: Case, column: int) -> None:
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(False)
    shown = mask_differences(case) if column == len(TITLES) - 1 else case.image
    axes.imshow(shown)
    for number, (_, colour) in enumerate(case.classes, 1):
        if column in (1, 2):
            mask = case.truth if column == 1 else case.prediction
            _outline(axes, mask == number, colour, "solid" if column == 1 else "dashed")
    if case.classes:
        return
    if column == 1:
        _outline(axes, case.truth, TRUE, "solid")
    if column == 2:
        _outline(axes, case.prediction, CALLED, "dashed")


def mask_differences(case: Case) -> NDArray[np.uint8]:
    """The dimmed image, coloured at true positives, false negatives and false positives.

    With several classes, also where one class was predicted as another.
    """
    truth, prediction = case.truth > 0, case.prediction > 0
    if case.classes:
        counted = case.truth != IGNORED
        truth, prediction = truth & counted, prediction & counted
    same = truth & prediction & (case.truth == case.prediction)
    grey = case.image.mean(axis=2, keepdims=True) * DIMMED
    shown = np.repeat(grey, 3, axis=2)
    for colour, pixel_mask in (
        (FOUND, same),
        (MISSED, truth & ~prediction),
        (ALARM, ~truth & prediction),
        (CONFUSED, truth & prediction & ~same),
    ):
        shown[pixel_mask] = 255 * np.array(to_rgb(colour))
    pixels: NDArray[np.uint8] = np.rint(shown).astype(np.uint8)
    return pixels


def _outline(axes: Axes, mask: NDArray[np.bool_], colour: str, dashes: str) -> None:
    """Draws the border of `mask`, closed also along the image's edge."""
    if not mask.any():
        return
    height, width = mask.shape
    padded = np.pad(mask.astype(float), 1)
    limits = axes.get_xlim(), axes.get_ylim()
    lines = axes.contour(
        np.arange(-1, width + 1),
        np.arange(-1, height + 1),
        padded,
        levels=[0.5],
        colors=[colour],
        linewidths=1.4,
        linestyles=[dashes],
    )
    lines.set_path_effects([withStroke(linewidth=2.6, foreground="black")])
    axes.set(xlim=limits[0], ylim=limits[1])


def _legend(figure: Figure, classes: Sequence[tuple[str, str]]) -> None:
    """Draws the legend: outcomes of the last column, and outlines or classes.

    Without classes, the outlines are in the same line; classes are in a line above.
    """
    if classes:
        lines = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in classes]
        above = FOOT / figure.get_figheight()
        columns = min(len(classes), _CLASSES_ABREAST)
        figure.legend(
            handles=lines, loc="lower center", bbox_to_anchor=(0.5, above), ncols=columns,
            frameon=False,
        )  # fmt: skip
    outlines = [
        Line2D([], [], color=TRUE, linewidth=2, label="true outline"),
        Line2D([], [], color=CALLED, linewidth=2, linestyle="--", label="predicted outline"),
    ]
    handles: list[Line2D | Patch] = [
        *([] if classes else outlines),
        Patch(facecolor=FOUND, label="found", edgecolor="#444444", linewidth=0.6),
        Patch(facecolor=MISSED, label="missed", edgecolor="#444444", linewidth=0.6),
        Patch(facecolor=ALARM, label="false alarm", edgecolor="#444444", linewidth=0.6),
    ]
    if classes:
        confused = "taken for another class"
        handles.append(
            Patch(facecolor=CONFUSED, label=confused, edgecolor="#444444", linewidth=0.6)
        )
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False)
