"""Figures of classes: dice and confusion of masks, and the confusion matrix of a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from robustcli.reports.figures.canvas import save_figure, save_with_pdf, styled, wrapped
from robustcli.reports.numbers import cell_label, fraction

# Inches.
_CELL, _LEFT, _TOP, _BOTTOM = (0.62, 0.3), 2.2, 0.55, 0.35
_MARGIN = 0.15
_SQUARE, _LABELS, _HEAD = 0.78, 1.4, 0.55
_DARK = 0.55  # share of the scale from which numbers are white


def draw_class_dice(
    cells: Mapping[tuple[str, int], NDArray[np.float64]], names: Sequence[str], path: Path
) -> None:
    """Draws the dice of each class (a column) under each transform (a row) with its number.

    Args:
        cells: Dice of each class, in [0, 1], by transform and severity; at least one entry.
        names: Names of the classes.
        path: The PNG to write.
    """
    values = np.stack(list(cells.values()))
    width = _LEFT + _CELL[0] * len(names) + _MARGIN
    height = _TOP + _CELL[1] * len(cells) + _BOTTOM
    with styled():
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((
            _LEFT / width, _BOTTOM / height,
            _CELL[0] * len(names) / width, _CELL[1] * len(cells) / height,
        ))  # fmt: skip
        _numbered(axes, values, values, [[fraction(v) for v in line] for line in values])
        axes.set_xticks(range(len(names)), [wrapped(name, 9) for name in names])
        axes.set_yticks(range(len(cells)), [cell_label(*cell) for cell in cells])
        axes.set_xlabel("dice (0 to 1)")
    save_figure(figure, path)


def draw_pixel_confusion(pixels: NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """Draws the share of each true class's pixels (a row) predicted as each class (a column).

    Args:
        pixels: (K + 1, K + 1), background first, true classes in rows.
        names: Names of the K classes.
        path: The PNG to write.
    """
    sums = pixels.sum(1, keepdims=True)
    shares = np.divide(pixels, sums, out=np.zeros(pixels.shape), where=sums > 0)
    labels = ["background", *names]
    side = _SQUARE * len(labels)
    width, height = _LABELS + side + _MARGIN, _HEAD + side + _BOTTOM
    texts = [
        [_percent(share, total) for share in line]
        for line, total in zip(shares, sums[:, 0], strict=True)
    ]
    with styled():
        figure = Figure(figsize=(width, height))
        place = (_LABELS / width, _BOTTOM / height, side / width, side / height)
        axes = figure.add_axes(place)
        _numbered(axes, shares, np.sqrt(shares), texts)
        axes.set_xticks(range(len(labels)), [wrapped(name, 9) for name in labels])
        axes.set_yticks(range(len(labels)), [wrapped(name, 14) for name in labels])
        axes.set(xlabel="predicted (% of the true pixels)", ylabel="true")
    save_figure(figure, path)


def _percent(share: float, total: int) -> str:
    if not total:
        return "none"
    shown = f"{100 * share:.1f}"
    return "< 0.1" if shown == "0.0" and share else shown


def _numbered(
    axes: Axes, values: NDArray[np.float64], shades: NDArray[np.float64],
    texts: Sequence[Sequence[str]],
) -> None:  # fmt: skip
    """Draws squares from white (0) to dark blue (1) with their numbers, column names on top."""
    axes.imshow(shades, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(values.shape):
        colour = "white" if shades[row, column] > _DARK else "black"
        axes.text(
            column, row, texts[row][column], ha="center", va="center", color=colour, fontsize=8
        )
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.spines[:].set_visible(False)


# The confusion matrix of a classifier.


MOST_CONFUSED_CLASSES = 100
"""Largest number of classes for which a cell of the matrix is not smaller than a letter."""
COUNTED_UP_TO, _NAMED_UP_TO = 20, 40


def draw_confusions(names: Sequence[str], counts: NDArray[np.int64], path: Path) -> None:
    """Draws a confusion matrix: a row per true class, a column per predicted class.

    The darkness of a cell is its share of the row; its number is the number of images.

    Args:
        names: Names of the classes, at most MOST_CONFUSED_CLASSES.
        counts: Images by true and predicted class, (K, K).
        path: The PNG to write; the PDF is written next to it.
    """
    classes = len(names)
    sums = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, sums, out=np.zeros(counts.shape), where=sums > 0)
    with styled():
        side = min(9.0, 2.6 + 0.42 * classes)
        figure = Figure(figsize=(side + 0.9, side), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        _name_classes(axes, names)
        if classes <= COUNTED_UP_TO:
            _write_counts(axes, counts, shares)
        axes.set(xlabel="predicted class", ylabel="true class")
        bar = figure.colorbar(image, ax=axes, shrink=0.7)
        bar.set_label("share of the true class")
    save_with_pdf(figure, path)


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    if len(names) > _NAMED_UP_TO:
        return
    size = 8.5 if len(names) <= COUNTED_UP_TO else 6.5
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.tick_params(length=0)


def _write_counts(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for line, column in zip(*np.nonzero(counts), strict=True):
        axes.text(
            column,
            line,
            f"{counts[line, column]:,}",
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if shares[line, column] > _DARK else "black",
        )
