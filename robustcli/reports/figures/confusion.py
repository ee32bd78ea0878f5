"""The confusion matrix of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from robustcli.reports.figures.canvas import save_with_pdf, styled

MOST_CONFUSED_CLASSES = 100
"""With more, a cell is smaller than a letter."""
COUNTED_UP_TO, _NAMED_UP_TO = 20, 40
_DARK = 0.55  # share from which a cell is so dark that its number is white


def draw_confusions(names: Sequence[str], counts: NDArray[np.int64], path: Path) -> None:
    """Draws a line per true class and a column per predicted one; the diagonal is right.

    The darkness of a cell is the share of its line; the number in it counts images.

    Args:
        names: Of the classes, at most MOST_CONFUSED_CLASSES.
        counts: Images by true and predicted class, (K, K).
        path: The PNG to write; the PDF lies beside it.
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
