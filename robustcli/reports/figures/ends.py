"""Labels beside the right end of lines, spread so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from robustcli.reports.figures.canvas import GREY

LINE = 0.15  # inches from one label to the next
_AWAY = 1.025  # where labels begin, in widths of the axes


@dataclass(frozen=True)
class EndLabel:
    """A text for the point (x, y) in data coordinates; without `x` no line leads to it."""

    text: str
    x: float | None
    y: float
    colour: str


def label_ends(axes: Axes, labels: Sequence[EndLabel]) -> None:
    """Writes `labels` in a column to the right of `axes`, in the order of their heights.

    The limits and scales of the axes, and the size of the figure, must be final.
    """
    if not labels:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = np.array([to_axes.transform((0, label.y))[1] for label in labels])
    figure = axes.get_figure(root=True)
    assert figure is not None
    tall = axes.get_position().height * figure.get_figheight()
    for label, place in zip(labels, spread(heights, LINE / tall), strict=True):
        axes.text(
            _AWAY + 0.025,
            place,
            label.text,
            transform=axes.transAxes,
            va="center",
            fontsize=7.5,
            color=label.colour,
        )
        if label.x is not None:
            start = to_axes.transform((label.x, label.y))
            axes.plot(
                [start[0] + 0.01, _AWAY, _AWAY + 0.02],
                [start[1], place, place],
                transform=axes.transAxes,
                color=GREY,
                linewidth=0.5,
                clip_on=False,
            )


def spread(heights: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """`heights` moved so little that neighbours are `gap` apart, within [0, 1] where they fit.

    Neighbours that are too close become a block around the mean of the places they would have.
    """
    order = np.argsort(heights, kind="stable")
    offsets = gap * np.arange(len(heights))
    blocks: list[tuple[float, int]] = []  # mean of (height - offset), members
    for value in heights[order] - offsets:
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (one, n), (other, m) = blocks[-2:]
            blocks[-2:] = [((one * n + other * m) / (n + m), n + m)]
    level = np.concatenate([np.full(count, mean) for mean, count in blocks])
    level = np.clip(level, 0, max(0.0, 1 - offsets[-1]))
    places = np.empty(len(heights))
    places[order] = level + offsets
    return places
