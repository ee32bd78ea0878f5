"""Figures of several seeds: validation scores by epoch, and held-out scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from robustcli.reports.figures.canvas import (
    COLOURS,
    GREY,
    MARKED_UP_TO,
    grid_shape,
    legend,
    light_grid,
    panel_grid,
    save_figure,
    styled,
    wrapped,
)

_PANELS_PER_ROW = 3
_SEED, _MEAN = COLOURS[0], COLOURS[6]
_THIN, _THICK = 0.9, 2.6


@dataclass(frozen=True)
class SeedCourses:
    """The validation score of each seed by epoch.

    Args:
        name: Name of the training or of the mode.
        scores: Scores of each seed, indexed by epoch from 1; at least one seed, none empty.
    """

    name: str
    scores: Sequence[pd.Series[float]]

    @property
    def mean(self) -> pd.Series[float]:
        """The mean over the seeds, for epochs that all seeds have."""
        return pd.concat(self.scores, axis=1, join="inner").mean(axis=1)


def draw_seed_courses(courses: Sequence[SeedCourses], axis: str, path: Path) -> None:
    """Draws a panel per training: a thin line per seed, and a thick line for their mean.

    Args:
        courses: At least one.
        axis: Name of the score, with its range.
        path: The PNG to write.
    """
    lines, columns = shape = grid_shape(len(courses), _PANELS_PER_ROW)
    size = (6.2 if columns == 1 else 3.1 * columns, 1.0 + 2.7 * lines)
    with styled():
        figure = Figure(figsize=size, layout="constrained")
        panels = panel_grid(figure, len(courses), shape, sharey=True)
        for axes, course in zip(panels, courses, strict=True):
            _courses(axes, course)
            axes.set_title(wrapped(course.name, 34))
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel(axis, fontsize=9)
        legend(figure, panels[0])
    save_figure(figure, path)


def _courses(axes: Axes, course: SeedCourses) -> None:
    for number, scores in enumerate(course.scores):
        _line(axes, scores, _SEED, _THIN, "single seeds" if number == 0 else None)
    if len(course.scores) > 1 and len(course.mean):
        _line(axes, course.mean, _MEAN, _THICK, f"mean of {len(course.scores)} seeds")
    last = max(int(scores.index.max()) for scores in course.scores)
    axes.set(xlim=(0.5, last + 0.5), ylim=(-0.02, 1))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    light_grid(axes)


def _line(
    axes: Axes, scores: pd.Series[float], colour: str, width: float, label: str | None
) -> None:
    axes.plot(
        scores.index.to_numpy(),
        scores.to_numpy(dtype=float),
        color=colour,
        linewidth=width,
        marker="o" if len(scores) <= MARKED_UP_TO else "",
        markersize=1.5 + width,
        alpha=0.75 if width == _THIN else 1.0,
        label=label,
    )


@dataclass(frozen=True)
class ScoreLine:
    """A score with the intervals to draw, each `(low, high)` or None.

    Args:
        name: Label on the left.
        value: The score.
        wide: Interval of the thin bar: over images, or over seeds and images.
        narrow: Interval of the thick bar: over seeds.
        mean: Whether the score is the mean over seeds.
    """

    name: str
    value: float
    wide: tuple[float, float] | None
    narrow: tuple[float, float] | None = None
    mean: bool = False


def draw_seed_scores(
    lines: Sequence[ScoreLine], axis: str, published: float | None, path: Path
) -> None:
    """Draws the held-out score of each seed and the means over them, one row each.

    Args:
        lines: At least one, the first on top.
        axis: Name of the score.
        published: Published score, drawn as a vertical line; None for none.
        path: The PNG to write.
    """
    with styled():
        figure = Figure(figsize=(7.4, 1.1 + 0.34 * len(lines)), layout="constrained")
        axes = figure.subplots()
        for height, line in enumerate(lines):
            _score(axes, line, height)
        if published is not None:
            axes.axvline(published, color=COLOURS[1], linestyle="--", linewidth=1.3,
                         label="published")  # fmt: skip
        axes.set_yticks(range(len(lines)), [line.name for line in lines])
        axes.set(ylim=(len(lines) - 0.5, -0.5), xlabel=axis)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        legend(figure, axes)
    save_figure(figure, path)


def _score(axes: Axes, line: ScoreLine, height: int) -> None:
    known = set(axes.get_legend_handles_labels()[1])

    def once(label: str) -> str | None:
        return None if label in known else label

    colour = _MEAN if line.mean else _SEED
    if line.wide is not None:
        label = "95 %, over seeds and images" if line.mean else "95 %, over images"
        axes.plot(line.wide, [height] * 2, color=colour if line.mean else GREY, linewidth=1.1,
                  label=once(label))  # fmt: skip
    if line.narrow is not None:
        axes.plot(line.narrow, [height] * 2, color=colour, linewidth=3.6, solid_capstyle="butt",
                  label=once("95 %, over seeds (t)"))  # fmt: skip
    axes.plot([line.value], [height], "D" if line.mean else "o", color=colour, markersize=6,
              markeredgecolor="white", label=once("mean" if line.mean else "a seed"))  # fmt: skip
    axes.set_xlim(*_limits(axes, line))


def _limits(axes: Axes, line: ScoreLine) -> tuple[float, float]:
    """The limits of the axis so far, extended to include `line`, with a margin."""
    ends = [line.value, *(line.wide or ()), *(line.narrow or ())]
    low, high = axes.dataLim.intervalx
    low, high = min(low, *ends), max(high, *ends)
    margin = max(0.005, 0.05 * (high - low))
    return float(np.floor((low - margin) * 200) / 200), float(np.ceil((high + margin) * 200) / 200)
