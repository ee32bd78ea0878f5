"""Figures of trainings: curves by epoch, scores of groups, scores against parameters and costs.

In figures of several trainings, each model has a separate colour, marker and dash pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from robustcli.reports.figures.canvas import (
    COLOURS,
    DASHES,
    DPI,
    GREY,
    LEGEND_LINE,
    LEGEND_LINES,
    MARKED_UP_TO,
    Estimate,
    Label,
    Look,
    grid_shape,
    interval_lengths,
    legend,
    legend_label,
    legend_lines,
    legend_width,
    light_grid,
    look,
    panel_grid,
    place_labels,
    save_figure,
    save_with_pdf,
    styled,
    wrapped,
)

_PANELS_PER_ROW = 4
Quantity = Literal["loss", "dice", "top1"]
# Column of `metrics.csv`, name, colour, dashes, marker; each of the last three distinguishes lines.
_LINES: dict[Quantity, tuple[tuple[str, str, str, str, str], ...]] = {
    "loss": (
        ("train_loss", "training loss", COLOURS[1], "-", "s"),
        ("val_loss", "validation loss", COLOURS[0], "--", "o"),
    ),
    "dice": (
        ("val_dice", "validation dice", COLOURS[0], "-", "o"),
        ("val_iou", "validation IoU", COLOURS[2], "--", "^"),
    ),
    "top1": (
        ("val_top1", "validation top-1", COLOURS[0], "-", "o"),
        ("val_f1", "validation macro F1", COLOURS[2], "--", "^"),
    ),
}


@dataclass(frozen=True)
class Course:
    """A training: its name, its rows of `metrics.csv` (at least one) and the chosen epoch."""

    name: str
    metrics: pd.DataFrame
    chosen: int | None


def draw_curves(course: Course, path: Path, score: Quantity) -> None:
    """Draws the losses on the left, the score on the right.

    Args:
        course: The training.
        path: The PNG to write.
        score: The score on the right.
    """
    quantities: tuple[Quantity, Quantity] = ("loss", score)
    with styled():
        figure = Figure(figsize=(8.6, 3.7), layout=ConstrainedLayoutEngine(wspace=0.06))
        for axes, quantity in zip(figure.subplots(1, 2), quantities, strict=True):
            _panel(axes, course, quantity)
            axes.set(xlabel="epoch", ylabel=_AXIS[quantity])
            axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


_AXIS: dict[Quantity, str] = {
    "loss": "loss",
    "dice": "dice, IoU (0 to 1)",
    "top1": "top-1, macro F1 (0 to 1)",
}


def draw_course_grid(courses: Sequence[Course], quantity: Quantity, path: Path) -> None:
    """Draws `quantity` of several trainings, a small panel each.

    Args:
        courses: At least one.
        quantity: The losses, or the scores of a task.
        path: The PNG to write.
    """
    lines, columns = shape = grid_shape(len(courses), _PANELS_PER_ROW)
    with styled():
        figure = Figure(figsize=(max(5.6, 2.2 * columns), 1.0 + 1.8 * lines), layout="constrained")
        # Losses of different kinds have different scales.
        panels = panel_grid(figure, len(courses), shape, sharey=quantity != "loss")
        for axes, course in zip(panels, courses, strict=True):
            _panel(axes, course, quantity)
            axes.set_title(wrapped(course.name, 26), fontsize=8.5)
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel(_AXIS[quantity], fontsize=9)
        legend(figure, panels[0])
    save_figure(figure, path)


def _panel(axes: Axes, course: Course, quantity: Quantity) -> None:
    epochs = course.metrics["epoch"].to_numpy()
    for column, name, colour, dashes, marker in _LINES[quantity]:
        if course.metrics[column].isna().all():
            continue  # older versions did not record it
        axes.plot(
            epochs,
            course.metrics[column].to_numpy(dtype=float),
            color=colour,
            linestyle=dashes,
            marker=marker if len(epochs) <= MARKED_UP_TO else "",
            markersize=3.5,
            linewidth=1.3,
            label=name,
        )
    if course.chosen is not None:
        axes.axvline(course.chosen, color=GREY, linestyle=":", linewidth=1.2, label="chosen epoch")
    _dress_epochs(axes, course.metrics, quantity)


def _dress_epochs(axes: Axes, metrics: pd.DataFrame, quantity: Quantity) -> None:
    axes.set_xlim(metrics["epoch"].min() - 0.5, metrics["epoch"].max() + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if quantity != "loss":
        axes.set_ylim(0, 1)
    else:
        values = metrics[[line[0] for line in _LINES[quantity]]].to_numpy(dtype=float)
        axes.set_ylim(min(0.0, float(np.nanmin(values, initial=0))), None)
    light_grid(axes)


STEP = 0.0125  # dice; closer dots are stacked
CROWDED = 120  # number of dots above which they are drawn smaller
SPREAD = 0.36  # share of a row, above and below


@dataclass(frozen=True)
class Strip:
    """The dice of one model's groups, and their mean with its interval."""

    name: str
    values: NDArray[np.float64]
    mean: Estimate


def draw_strips(strips: Sequence[Strip], group: str, path: Path) -> None:
    """Draws a row of dots per strip, and its mean with the interval below them.

    Args:
        strips: At least one.
        group: Name of the unit that a dot represents, in the singular.
        path: The PNG to write.
    """
    with styled():
        figure = Figure(figsize=(8.6, 1.0 + 1.25 * len(strips)), layout="constrained")
        axes = figure.subplots()
        for line, strip in enumerate(strips):
            _strip(axes, strip, line)
        axes.set_yticks(range(len(strips)), [strip.name for strip in strips])
        axes.set(xlim=(-0.02, 1.02), ylim=(len(strips) - 0.45, -0.55))
        axes.set_xlabel(f"dice of a single {group} (dots); mean with 95 % interval (black)")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
    save_figure(figure, path)


def _strip(axes: Axes, strip: Strip, line: int) -> None:
    style, places = look(line), dot_offsets(strip.values)
    crowded = len(places) > CROWDED
    axes.scatter(
        strip.values,
        line - 0.1 + places,
        s=9 if crowded else 20,
        marker=style.marker,
        color=style.colour,
        edgecolor="white",
        linewidth=0.1 if crowded else 0.4,
    )
    axes.errorbar(
        strip.mean.value,
        line + 0.38,
        xerr=interval_lengths([strip.mean]),
        fmt="|",
        markersize=9,
        color="black",
        elinewidth=1.6,
        capsize=3,
    )


def dot_offsets(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each dot from the middle of its row, in [-SPREAD, SPREAD].

    Dots of about equal value are stacked from the middle outwards, alternately up and down.
    """
    places = np.rint(values / STEP).astype(int)
    ranks = np.zeros(len(values))
    for place in np.unique(places):
        members = np.flatnonzero(places == place)
        order = np.arange(len(members))
        ranks[members] = np.where(order % 2, -1, 1) * ((order + 1) // 2)
    tallest = max(4.0, float(np.abs(ranks).max(initial=0)))
    scaled: NDArray[np.float64] = ranks * SPREAD / tallest
    return scaled


_COURSES_SIZE = (8.6, 5.6)
ROOM = 0.1  # margin above and below, as a share of the range of dice
MEASURED = COLOURS[0]
MEASURED_NAME, PUBLISHED_NAME = "measured here, 95 % interval", "as published"


@dataclass(frozen=True)
class Point:
    """A network: its label, its name, its parameters (above 0) and its dice in [0, 1]."""

    name: str
    network: str
    parameters: int
    dice: Estimate
    measured: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line for a baseline, which has no parameters."""

    name: str
    dice: float


def draw_scatter(points: Sequence[Point], levels: Sequence[Level], path: Path) -> None:
    """Draws `points` with the parameters on a logarithmic axis, each with its name.

    Args:
        points: At least one.
        levels: Baselines.
        path: The PNG to write.
    """
    with styled():
        figure = Figure(figsize=_COURSES_SIZE, dpi=DPI)
        axes = figure.add_axes((0.08, 0.1, 0.9, 0.89 - _legend_share(levels)))
        _points(axes, [point for point in points if not point.measured], measured=False)
        _points(axes, [point for point in points if point.measured], measured=True)
        for level in levels:
            axes.axhline(level.dice, color=GREY, linestyle="--", linewidth=1, label=level.name)
        _dress_scatter(axes, points, levels)
        legend(figure, axes)
        _join(axes, points)
        place_labels(axes, _labels(points), _bars(axes, points, levels))
    save_figure(figure, path)


def _legend_share(levels: Sequence[Level]) -> float:
    """Share of the figure's height for the legend above the axes."""
    names = [MEASURED_NAME, PUBLISHED_NAME, *(level.name for level in levels)]
    columns = max(1, int(_COURSES_SIZE[0] / legend_width(names)))
    return (0.15 + LEGEND_LINE * -(-len(names) // columns)) / _COURSES_SIZE[1]


def _points(axes: Axes, points: Sequence[Point], *, measured: bool) -> None:
    if not points:
        return
    axes.errorbar(
        [point.parameters for point in points],
        [point.dice.value for point in points],
        yerr=interval_lengths([point.dice for point in points]) if measured else None,
        fmt="D" if measured else "o",
        color=MEASURED if measured else GREY,
        markerfacecolor=MEASURED if measured else "white",
        markersize=6,
        elinewidth=1.1,
        capsize=2.5,
        label=MEASURED_NAME if measured else PUBLISHED_NAME,
        zorder=3,
    )


def _join(axes: Axes, points: Sequence[Point]) -> None:
    """Draws a thin line from each measured point to the published point of the same network."""
    for point in points:
        twin = _twin(point, points)
        if twin is not None:
            ends = (point.parameters, twin.parameters), (point.dice.value, twin.dice.value)
            axes.plot(*ends, color=GREY, linewidth=0.7, zorder=2)


def _twin(point: Point, points: Sequence[Point]) -> Point | None:
    """The published point of the network of a measured `point`; None without one."""
    same = [twin for twin in points if not twin.measured and twin.network == point.network]
    return same[0] if point.measured and same else None


def _labels(points: Sequence[Point]) -> list[Label]:
    """Labels of the measured points, then of the published points without a measured one."""
    measured = {point.network for point in points if point.measured}
    shown = [point for point in points if point.measured or point.network not in measured]
    order = sorted(shown, key=lambda p: (not p.measured, p.parameters, p.dice.value))
    return [
        Label(p.name, p.parameters, p.dice.value, "bold" if p.measured else "normal") for p in order
    ]


def _bars(axes: Axes, points: Sequence[Point], levels: Sequence[Level]) -> list[Bbox]:
    """Boxes of the points with their intervals, and of the baselines, in pixels."""
    boxes = []
    for point in points:
        (x, low), (_, y), (_, high) = axes.transData.transform(
            [(point.parameters, dice) for dice in point.dice]
        )
        boxes += [Bbox([[x - 2, low], [x + 2, high]])] if point.measured else []
        boxes.append(Bbox([[x - 7, y - 7], [x + 7, y + 7]]))
    for level in levels:
        y = axes.transData.transform((1, level.dice))[1]
        boxes.append(Bbox([[axes.bbox.x0, y - 1], [axes.bbox.x1, y + 1]]))
    return boxes


def _dress_scatter(axes: Axes, points: Sequence[Point], levels: Sequence[Level]) -> None:
    counts = [point.parameters for point in points]
    heights = [end for p in points for end in p.dice.ends] + [level.dice for level in levels]
    room = ROOM * max(0.1, max(heights) - min(heights))
    axes.set_xscale("log")
    axes.set_xlim(min(counts) / 2.2, max(counts) * 3)
    axes.set_ylim(max(0.0, min(heights) - room), min(1.0, max(heights) + room))
    axes.set(xlabel="parameters (logarithmic)", ylabel="dice (0 to 1)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: short(count)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    light_grid(axes)


def short(count: float) -> str:
    """A round number as short text: `50 k`, `2 M`, `5 G`."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:g} {letter}"
    return f"{count:g}"


# Several trainings: curves by epoch, and scores against costs. Every figure is a PNG and a PDF.


LABEL_WIDTH = 26  # characters per line of a label
_ROOM = 0.12  # margin above and below, as a share of the range of scores
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
        height = 3.7 + LEGEND_LINE * min(LEGEND_LINES, legend_lines(names, width))
        figure = Figure(figsize=(width, height), layout="constrained")
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(row, panels, strict=True):
            for number, (name, (_, metrics)) in enumerate(zip(names, courses, strict=True)):
                _epoch_line(axes, metrics, panel.column, name, number)
            axes.set(xlabel="epoch", ylabel=panel.axis)
            axes.set_title(panel.title, loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
            if panel.from_zero:
                axes.set_ylim(0, None)
            light_grid(axes)
        legend(figure, row[0])
    save_with_pdf(figure, path)


def _epoch_line(axes: Axes, metrics: pd.DataFrame, column: str, name: str, number: int) -> None:
    style, epochs = look(number), metrics["epoch"].to_numpy()
    axes.plot(
        epochs,
        metrics[column].to_numpy(dtype=float),
        color=style.colour,
        linestyle=DASHES[number % len(DASHES)],
        marker=style.marker if len(epochs) <= MARKED_UP_TO else "",
        markersize=4,
        linewidth=1.3,
        label=legend_label(name),
    )


@dataclass(frozen=True)
class CostPoint:
    """A training: its name, its score on held-out images in [0, 1], its costs by `CostPanel.cost`.

    Costs are above 0; None if not recorded.
    """

    name: str
    score: Estimate
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
    lines, columns = shape = grid_shape(len(panels), 2)
    with styled():
        figure = Figure(figsize=(5.4 * columns, 4.1 * lines), dpi=DPI, layout="constrained")
        grid = panel_grid(figure, len(panels), shape, sharey=True)
        shown = [[p for p in points if p.costs[panel.cost] is not None] for panel in panels]
        for axes, panel, known in zip(grid, panels, shown, strict=True):
            for point in known:
                _cost_point(axes, point, panel, look(points.index(point)), scale)
            _dress_costs(axes, known, panel)
            axes.set_ylabel(axis)
            axes.tick_params(labelleft=True)
        grid[0].set_ylim(*_score_limits(points, scale))
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # labels are placed on the final axes
        for axes, panel, known in zip(grid, panels, shown, strict=True):
            _label_costs(axes, known, panel, scale)
    save_with_pdf(figure, path)


def _cost_point(axes: Axes, point: CostPoint, panel: CostPanel, style: Look, scale: float) -> None:
    axes.errorbar(
        [_cost(point, panel)],
        [scale * point.score.value],
        yerr=interval_lengths([point.score], scale),
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


def _score_limits(points: Sequence[CostPoint], scale: float) -> tuple[float, float]:
    ends = [end for point in points for end in point.score.ends]
    room = _ROOM * max(0.1, max(ends) - min(ends))
    return scale * max(0.0, min(ends) - room), scale * min(1.0, max(ends) + room)


def _dress_costs(axes: Axes, points: Sequence[CostPoint], panel: CostPanel) -> None:
    costs = [_cost(point, panel) for point in points]
    room = min(4.0, max(1.6, (max(costs) / min(costs)) ** 0.25))
    low, high = min(costs) / room, max(costs) * room
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xlabel(panel.axis)
    steps = next(steps for most, steps in _TICKS if high / low <= most)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,g} s" if panel.seconds else short(value))
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
    light_grid(axes)


def _label_costs(axes: Axes, points: Sequence[CostPoint], panel: CostPanel, scale: float) -> None:
    labels, bars = [], []
    for point in sorted(points, key=lambda p: (_cost(p, panel), p.score.value)):
        x, score = _cost(point, panel), point.score
        labels.append(Label(wrapped(point.name, LABEL_WIDTH), x, scale * score.value))
        (left, low), (_, high) = axes.transData.transform([(x, scale * end) for end in score.ends])
        bars.append(Bbox([[left - 4, low - 2], [left + 4, high + 2]]))
    place_labels(axes, labels, bars)
