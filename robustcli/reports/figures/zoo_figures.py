"""Figures of several trainings: their curves by epoch, and their scores against their costs.

Each model has a separate colour, marker and dash pattern. Every figure is a PNG and a PDF.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from robustcli.reports.figures.canvas import (
    DASHES,
    DPI,
    MARKED_UP_TO,
    Look,
    legend,
    legend_width,
    light_grid,
    look,
    save_with_pdf,
    styled,
    wrapped,
)
from robustcli.reports.figures.point_labels import Label, place_labels
from robustcli.reports.figures.training_figures import short

LABEL_WIDTH = 26  # characters per line of a label
_ROOM = 0.12  # margin above and below, as a share of the range of scores
_LEGEND_LINE = 0.2  # inches
# Largest ratio of an axis' ends, and the ticks per power of ten that fit on such an axis.
_TICKS = ((100.0, (1.0, 2.0, 5.0)), (1000.0, (1.0, 3.0)), (float("inf"), (1.0,)))


@dataclass(frozen=True)
class EpochPanel:
    """A panel that draws one column of `metrics.csv`.

    Args:
        column: Column of `metrics.csv`.
        axis: Label of the y axis, with its unit.
        title: Title above the panel; empty for none.
        from_zero: Whether the y axis always starts at 0.
    """

    column: str
    axis: str
    title: str = ""
    from_zero: bool = False


def draw_by_epoch(
    courses: Sequence[tuple[str, pd.DataFrame]], panels: Sequence[EpochPanel], path: Path
) -> None:
    """Draws a line per training into each panel, the panels side by side.

    Args:
        courses: Name and rows of `metrics.csv` of each training, at least one.
        panels: At least one. A training that lacks a column has no line in its panel.
        path: The PNG to write; the PDF is written next to it.
    """
    names = [wrapped(name, LABEL_WIDTH) for name, _ in courses]
    with styled():
        width = max(6.4, 4.6 * len(panels))
        height = 3.7 + _LEGEND_LINE * _legend_lines(names, width)
        figure = Figure(figsize=(width, height), layout="constrained")
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(row, panels, strict=True):
            for number, (name, metrics) in enumerate(zip(names, _lines(courses), strict=True)):
                _course(axes, metrics, panel.column, name, number)
            axes.set(xlabel="epoch", ylabel=panel.axis)
            axes.set_title(panel.title, loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
            if panel.from_zero:
                axes.set_ylim(0, None)
            light_grid(axes)
        legend(figure, row[0])
    save_with_pdf(figure, path)


def _lines(courses: Sequence[tuple[str, pd.DataFrame]]) -> list[pd.DataFrame]:
    return [metrics for _, metrics in courses]


def _course(axes: Axes, metrics: pd.DataFrame, column: str, name: str, number: int) -> None:
    style, epochs = look(number), metrics["epoch"].to_numpy()
    axes.plot(
        epochs,
        metrics[column].to_numpy(dtype=float),
        color=style.colour,
        linestyle=DASHES[number % len(DASHES)],
        marker=style.marker if len(epochs) <= MARKED_UP_TO else "",
        markersize=4,
        linewidth=1.3,
        label=name,
    )


@dataclass(frozen=True)
class CostPoint:
    """A training: its name, its score with its interval, and its costs by `CostPanel.cost`.

    Args:
        name: Name of the training.
        score: Score on its held-out images, in [0, 1].
        low: Lower end of the 95 % interval; None without one.
        high: Upper end of the 95 % interval; None without one.
        costs: Costs above 0; None if not recorded.
    """

    name: str
    score: float
    low: float | None
    high: float | None
    costs: dict[str, float | None]


@dataclass(frozen=True)
class CostPanel:
    """A panel: a key of `CostPoint.costs`, and the label of the logarithmic axis."""

    cost: str
    axis: str
    seconds: bool = False


def draw_costs(
    points: Sequence[CostPoint], panels: Sequence[CostPanel], axis: str, scale: float, path: Path
) -> None:
    """Draws the score against each cost, two panels side by side, every point with its name.

    Args:
        points: At least one; points without the cost of a panel are left out of it.
        panels: At least one, each with at least one point.
        axis: Label of the score axis.
        scale: Factor from scores in [0, 1] to the axis.
        path: The PNG to write; the PDF is written next to it.
    """
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    with styled():
        figure = Figure(figsize=(5.4 * columns, 4.1 * lines), dpi=DPI, layout="constrained")
        grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        shown = [[p for p in points if p.costs[panel.cost] is not None] for panel in panels]
        for axes, panel, known in zip(grid.flat, panels, shown, strict=False):
            for point in known:
                _point(axes, point, panel, look(points.index(point)), scale)
            _dress(axes, known, panel)
            axes.set_ylabel(axis)
            axes.tick_params(labelleft=True)
        grid[0, 0].set_ylim(*_limits(points, scale))
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # labels are placed on the final axes
        for axes, panel, known in zip(grid.flat, panels, shown, strict=False):
            _label(axes, known, panel, scale)
    save_with_pdf(figure, path)


def _point(axes: Axes, point: CostPoint, panel: CostPanel, style: Look, scale: float) -> None:
    low, high = _ends(point)
    axes.errorbar(
        [_cost(point, panel)],
        [scale * point.score],
        yerr=[[max(0.0, scale * (point.score - low))], [max(0.0, scale * (high - point.score))]],
        fmt=style.marker,
        color=style.colour,
        markersize=6,
        elinewidth=1.1,
        capsize=2.5,
        zorder=3,
    )


def _cost(point: CostPoint, panel: CostPanel) -> float:
    cost = point.costs[panel.cost]
    assert cost is not None, "points without it are not drawn"
    return cost


def _ends(point: CostPoint) -> tuple[float, float]:
    return (
        point.score if point.low is None else point.low,
        point.score if point.high is None else point.high,
    )


def _limits(points: Sequence[CostPoint], scale: float) -> tuple[float, float]:
    ends = [end for point in points for end in _ends(point)]
    room = _ROOM * max(0.1, max(ends) - min(ends))
    return scale * max(0.0, min(ends) - room), scale * min(1.0, max(ends) + room)


def _dress(axes: Axes, points: Sequence[CostPoint], panel: CostPanel) -> None:
    costs = [_cost(point, panel) for point in points]
    room = min(4.0, max(1.6, (max(costs) / min(costs)) ** 0.25))
    low, high = min(costs) / room, max(costs) * room
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xlabel(panel.axis)
    steps = next(steps for most, steps in _TICKS if high / low <= most)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    shown = _seconds if panel.seconds else short
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    light_grid(axes)


def _seconds(value: float) -> str:
    return f"{value:,g} s"


def _label(axes: Axes, points: Sequence[CostPoint], panel: CostPanel, scale: float) -> None:
    labels, bars = [], []
    for point in sorted(points, key=lambda p: (_cost(p, panel), p.score)):
        x, ends = _cost(point, panel), _ends(point)
        labels.append(Label(wrapped(point.name, LABEL_WIDTH), x, scale * point.score))
        (left, low), (_, high) = axes.transData.transform([(x, scale * end) for end in ends])
        bars.append(Bbox([[left - 4, low - 2], [left + 4, high + 2]]))
    place_labels(axes, labels, bars)


def _legend_lines(names: Sequence[str], width: float) -> int:
    """Number of text lines of a legend of `width` inches."""
    columns = max(1, int(width / legend_width(names)))
    lines = max(1 + name.count("\n") for name in names)
    return lines * -(-len(names) // columns)
