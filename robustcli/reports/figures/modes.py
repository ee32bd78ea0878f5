"""How the modes of a fine-tuning went: validation loss and score, by epoch and by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from robustcli.reports.figures.canvas import COLOURS, MARKERS, legend, save, styled

MARKED_UP_TO = 25  # epochs: more markers than that run together
MINUTES_FROM = 180  # seconds
HOURS_FROM = 3 * 3600
_DASHES = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)))
_LOSS = ("val_loss", "validation loss")
DICE = ("val_dice", "validation dice (0 to 1)")


@dataclass(frozen=True)
class ModeCourse:
    """A mode.

    Args:
        name: What the legend calls it.
        look: Its colour, dashes and marker, by number: the same for a mode in every report.
        metrics: Its lines of `metrics.csv`, at least one.
        chosen: The epoch whose weights were taken, or None.
        frozen_at: The step at which parameters were frozen, or None.
    """

    name: str
    look: int
    metrics: pd.DataFrame
    chosen: int | None
    frozen_at: int | None

    @property
    def clock(self) -> NDArray[np.float64]:
        """Seconds from the start to the end of each epoch, validations included."""
        return np.cumsum(self.metrics["seconds"].to_numpy(dtype=float))

    def place(self, step: int, ends: NDArray[np.float64]) -> float:
        """Where `step` is on an axis on which the epochs end at `ends`."""
        steps = self.metrics["step"].to_numpy(dtype=float)
        return float(np.interp(step, [0, *steps], [0, *ends]))


def draw_modes(courses: Sequence[ModeCourse], path: Path, score: tuple[str, str] = DICE) -> None:
    """Draws four panels: loss above the score, by epoch on the left and by time on the right.

    Args:
        courses: At least one.
        path: The PNG to write.
        score: Column of `metrics.csv` and its label; it lies in 0 to 1.
    """
    unit, name = _unit(max(float(course.clock[-1]) for course in courses))
    with styled():
        layout = ConstrainedLayoutEngine(wspace=0.04, hspace=0.04)
        figure = Figure(figsize=(8.6, 6.2), layout=layout)
        grid = figure.subplots(2, 2, sharex="col", sharey="row", squeeze=False)
        for row, (column, label) in zip(grid, (_LOSS, score), strict=True):
            for course in courses:
                epochs = course.metrics["epoch"].to_numpy(dtype=float)
                _line(row[0], course, column, epochs)
                _line(row[1], course, column, course.clock / unit)
            row[0].set_ylabel(label)
            _dress(row, bounded=column == score[0])
        most = max(float(course.metrics["epoch"].max()) for course in courses)
        grid[1, 0].set(xlabel="epoch", xlim=(0, most + 0.5))
        grid[1, 0].xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        grid[1, 1].set(xlabel=f"{name} of training and validation", xlim=(0, None))
        legend(figure, grid[0, 0])
    save(figure, path)


def _unit(seconds: float) -> tuple[int, str]:
    """The unit of time in which `seconds` are a number that is easily read."""
    if seconds >= HOURS_FROM:
        return 3600, "hours"
    return (60, "minutes") if seconds >= MINUTES_FROM else (1, "seconds")


def _line(axes: Axes, course: ModeCourse, column: str, ends: NDArray[np.float64]) -> None:
    values = course.metrics[column].to_numpy(dtype=float)
    colour, marker = COLOURS[course.look], MARKERS[course.look]
    axes.plot(
        ends,
        values,
        color=colour,
        linestyle=_DASHES[course.look],
        marker=marker if len(ends) <= MARKED_UP_TO else "",
        markersize=3.5,
        linewidth=1.3,
        label=course.name,
    )
    chosen = course.metrics["epoch"].to_numpy() == course.chosen
    if chosen.any():
        axes.plot(
            ends[chosen], values[chosen], color=colour, marker=marker, markersize=9,
            markerfacecolor="none", markeredgewidth=1.4, linestyle="", clip_on=False,
        )  # fmt: skip
    if course.frozen_at is not None:
        place = course.place(course.frozen_at, ends)
        axes.axvline(place, color=colour, linestyle=":", linewidth=1.2, label="moment of freezing")


def _dress(row: NDArray[np.object_], *, bounded: bool) -> None:
    for axes in row:
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if bounded:
        row[0].set_ylim(0, 1)
