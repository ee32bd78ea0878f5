"""Figures of a fine-tuning: gradients over iterations, modes, and savings of freezing rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from robustcli.reports.figures.canvas import (
    COLOURS,
    DPI,
    GREY,
    MARKED_UP_TO,
    MARKERS,
    Estimate,
    Label,
    grid_shape,
    interval_lengths,
    legend,
    light_grid,
    panel_grid,
    place_labels,
    save_figure,
    styled,
    wrapped,
)

LINE = 0.15  # inches from one label to the next
_AWAY = 1.025  # start of the labels, in widths of the axes


@dataclass(frozen=True)
class EndLabel:
    """A text for the point (x, y) in data coordinates; without `x` it gets no line."""

    text: str
    x: float | None
    y: float
    colour: str


def label_ends(axes: Axes, labels: Sequence[EndLabel]) -> None:
    """Writes `labels` in a column to the right of `axes`, ordered by height.

    The limits and scales of the axes, and the size of the figure, must be final.
    """
    if not labels:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = np.array([to_axes.transform((0, label.y))[1] for label in labels])
    figure = axes.get_figure(root=True)
    assert figure is not None
    tall = axes.get_position().height * figure.get_figheight()
    for label, place in zip(labels, spread_apart(heights, LINE / tall), strict=True):
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


def spread_apart(heights: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Moves `heights` as little as possible so that neighbours are `gap` apart.

    The results are in [0, 1] if they fit. Neighbours that are too close form a block around the
    mean of their unmoved positions.
    """
    order = np.argsort(heights, kind="stable")
    offsets = gap * np.arange(len(heights))
    blocks: list[tuple[float, int]] = []  # mean of (height - offset), members
    for value in heights[order] - offsets:
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (upper, n), (lower, m) = blocks[-2:]
            blocks[-2:] = [((upper * n + lower * m) / (n + m), n + m)]
    level = np.concatenate([np.full(count, mean) for mean, count in blocks])
    level = np.clip(level, 0, max(0.0, 1 - offsets[-1]))
    places = np.empty(len(heights))
    places[order] = level + offsets
    return places


MOST_TICKS = 8
_NOTHING = (1e-8, 1.0)  # range of the axis if no value is above 0


@dataclass(frozen=True)
class LogScale:
    """A logarithmic axis from `floor` to `top` (above 0); with `zeros`, 0 is drawn at `floor`."""

    floor: float
    top: float
    zeros: bool

    def place(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The positions of `values` on the axis; NaN is unchanged."""
        return np.where(values <= 0, self.floor, values)

    def ticks(self) -> dict[float, str]:
        """Powers of ten, at most about MOST_TICKS, and 0 if `zeros`."""
        first = round(np.log10(self.floor)) + self.zeros
        last = int(np.floor(np.log10(self.top)))
        step = max(1, -(-(last - first + 1) // MOST_TICKS))
        labels = {
            10.0**power: f"1e{power}" if power else "1" for power in range(first, last + 1, step)
        }
        return {self.floor: "0", **labels} if self.zeros else labels

    def apply(self, axes: Axes) -> None:
        """Sets the scale, limits and ticks of the y axis of `axes`."""
        labels = self.ticks()
        axes.set_yscale("log")
        axes.set_ylim(self.floor * (0.6 if self.zeros else 0.9), self.top)
        axes.yaxis.set_major_locator(FixedLocator(list(labels)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: labels.get(value, "")))
        axes.yaxis.set_minor_locator(NullLocator())


def log_scale(values: NDArray[np.float64], marks: Sequence[float] = ()) -> LogScale:
    """The logarithmic axis for `values` (at least 0, or NaN) and `marks`.

    The floor is a power of ten; with zeros it is a decade below all other values.
    """
    ends = [*values[values > 0], *(mark for mark in marks if mark > 0)]
    low, high = (min(ends), max(ends)) if ends else _NOTHING
    zeros = bool((values == 0).any())
    decade = int(np.floor(np.log10(low))) - zeros
    return LogScale(10.0**decade, float(high) * 2, zeros)


LABELLED_LINES = 12  # largest number of labelled lines in one panel
_PANELS_PER_ROW = 4
# Frozen tensors differ by colour, dashes and, in greyscale prints, by the hollow marker.
TRAINED, FROZEN = COLOURS[0], COLOURS[1]
_SIZE = (8.6, 4.6)
_LETTER = 0.074  # inches per letter of a label


@dataclass(frozen=True)
class GradientCurve:
    """The gradient statistic of one tensor.

    Args:
        label: Name of the tensor, unique in the figure.
        kind: Panel of the tensor, if there are several panels.
        statistics: Statistic per iteration, at least one; NaN for iterations without a gradient.
        mean: The value that a rule compares; None if the tensor never had a gradient.
        frozen: Whether the tensor was frozen.
    """

    label: str
    kind: str
    statistics: NDArray[np.float64]
    mean: float | None
    frozen: bool


@dataclass(frozen=True)
class Limit:
    """The threshold between frozen and trained tensors, in the unit of the statistic."""

    name: str
    value: float


def draw_gradients(
    curves: Sequence[GradientCurve], limit: Limit | None, statistic: str, path: Path
) -> None:
    """Draws a line per curve: in one panel with labels, or in a panel per kind.

    Args:
        curves: At least one, all with equally many iterations.
        limit: None if the rule has no threshold.
        statistic: Name of the statistic, for the axis.
        path: The PNG to write.
    """
    statistics = np.concatenate([curve.statistics for curve in curves])
    scale = log_scale(statistics, [] if limit is None else [limit.value])
    with styled():
        if len(curves) <= LABELLED_LINES:
            figure = _single(curves, limit, scale, statistic)
        else:
            figure = _panels(curves, limit, scale, statistic)
    save_figure(figure, path)


def _single(
    curves: Sequence[GradientCurve], limit: Limit | None, scale: LogScale, statistic: str
) -> Figure:
    figure = Figure(figsize=_SIZE)
    ends = [_end(curve, scale) for curve in curves]
    margin = (0.45 + _LETTER * max(len(end.text) for end in ends)) / _SIZE[0]
    axes = figure.add_axes((0.1, 0.115, max(0.3, 0.9 - margin), 0.795))
    for number, curve in enumerate(curves):
        _gradient_line(axes, curve, scale, MARKERS[number % len(MARKERS)])
    _dress_gradients(axes, curves, limit, scale)
    axes.set(xlabel="iteration", ylabel=statistic)
    label_ends(axes, ends)
    _legend(figure, curves, limit)
    return figure


def _panels(
    curves: Sequence[GradientCurve], limit: Limit | None, scale: LogScale, statistic: str
) -> Figure:
    kinds = list(dict.fromkeys(curve.kind for curve in curves))
    lines, columns = shape = grid_shape(len(kinds), _PANELS_PER_ROW)
    size = (max(5.6, 0.8 + 2.1 * columns), 1.1 + 1.8 * lines)
    figure = Figure(figsize=size, layout="constrained")
    panels = panel_grid(figure, len(kinds), shape, outer=True, sharex=True, sharey=True)
    for axes, kind in zip(panels, kinds, strict=True):
        members = [curve for curve in curves if curve.kind == kind]
        for curve in members:
            _gradient_line(axes, curve, scale, "")
        title = f"{kind}: {sum(curve.frozen for curve in members)}/{len(members)} frozen"
        axes.set_title(wrapped(title, 26), fontsize=8.5)
        _dress_gradients(axes, members, limit, scale)
    figure.supxlabel("iteration", fontsize=9)
    figure.supylabel(wrapped(statistic, 48), fontsize=9)
    _legend(figure, curves, limit)
    return figure


def _gradient_line(axes: Axes, curve: GradientCurve, scale: LogScale, marker: str) -> None:
    """Draws the statistic of a tensor, and its mean after the last iteration."""
    colour = FROZEN if curve.frozen else TRAINED
    crowded = not marker
    iterations = np.arange(1, len(curve.statistics) + 1)
    face = "white" if curve.frozen else colour
    axes.plot(
        iterations,
        scale.place(curve.statistics),
        color=colour,
        linestyle="--" if curve.frozen else "-",
        linewidth=0.8 if crowded else 1.1,
        alpha=0.75,
        marker="." if len(iterations) == 1 else "",
        label=curve.label,
        zorder=3 if curve.frozen else 2,
    )
    if curve.mean is not None:
        axes.plot(
            [_mean_at(curve)],
            scale.place(np.array([curve.mean])),
            color=colour,
            marker=marker or "_",
            markerfacecolor=face,
            markersize=5 if crowded else 6,
            zorder=4,
        )


def _mean_at(curve: GradientCurve) -> float:
    return len(curve.statistics) * 1.03 + 0.3


def _end(curve: GradientCurve, scale: LogScale) -> EndLabel:
    """The label of a tensor at the end of its line; marks tensors without a gradient."""
    colour = FROZEN if curve.frozen else TRAINED
    if curve.mean is None:
        return EndLabel(f"{curve.label} (none)", None, scale.floor, GREY)
    height = float(scale.place(np.array([curve.mean]))[0])
    return EndLabel(curve.label, _mean_at(curve), height, colour)


def _dress_gradients(
    axes: Axes, curves: Sequence[GradientCurve], limit: Limit | None, scale: LogScale
) -> None:
    if limit is not None and limit.value > 0:
        axes.axhline(limit.value, color="black", linestyle=":", linewidth=1.3, zorder=5)
    last = max(len(curve.statistics) for curve in curves)
    axes.set_xlim(1 - 0.02 * last, last * 1.06 + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    scale.apply(axes)
    light_grid(axes)


def _legend(figure: Figure, curves: Sequence[GradientCurve], limit: Limit | None) -> None:
    several = len(curves) > LABELLED_LINES
    marker = "_" if several else "o"
    handles = []
    if any(not curve.frozen for curve in curves):
        handles.append(Line2D([], [], color=TRAINED, marker=marker, label="trained"))
    if any(curve.frozen for curve in curves):
        handles.append(
            Line2D(
                [], [], color=FROZEN, linestyle="--", marker=marker, markerfacecolor="white",
                label="frozen",
            )
        )  # fmt: skip
    if limit is not None and limit.value > 0:
        handles.append(Line2D([], [], color="black", linestyle=":", label=limit.name))
    if several:
        figure.legend(
            handles=handles, loc="outside upper center", ncols=len(handles), frameon=False
        )
    else:
        figure.legend(handles=handles, loc="upper center", ncols=len(handles), frameon=False)


MINUTES_FROM = 180  # seconds
HOURS_FROM = 3 * 3600
_DASHES = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)))
_LOSS = ("val_loss", "validation loss")


@dataclass(frozen=True)
class ModeCourse:
    """The metrics of a mode.

    Args:
        name: Name in the legend.
        look: Index of its colour, dashes and marker, the same for a mode in every report.
        metrics: Its rows of `metrics.csv`, at least one.
        chosen: The epoch whose weights were selected, or None.
        frozen_at: The step at which parameters were frozen, or None.
    """

    name: str
    look: int
    metrics: pd.DataFrame
    chosen: int | None
    frozen_at: int | None

    @property
    def clock(self) -> NDArray[np.float64]:
        """Seconds from the start to the end of each epoch, validation included."""
        return np.cumsum(self.metrics["seconds"].to_numpy(dtype=float))

    def place(self, step: int, ends: NDArray[np.float64]) -> float:
        """The position of `step` on an axis on which the epochs end at `ends`."""
        steps = self.metrics["step"].to_numpy(dtype=float)
        return float(np.interp(step, [0, *steps], [0, *ends]))


def draw_modes(courses: Sequence[ModeCourse], path: Path, score: tuple[str, str]) -> None:
    """Draws four panels: loss above the score, over epochs on the left and over time on the right.

    Args:
        courses: At least one.
        path: The PNG to write.
        score: Column of `metrics.csv` and its label; values are from 0 to 1.
    """
    unit, name = _unit(max(float(course.clock[-1]) for course in courses))
    with styled():
        layout = ConstrainedLayoutEngine(wspace=0.04, hspace=0.04)
        figure = Figure(figsize=(8.6, 6.2), layout=layout)
        grid = figure.subplots(2, 2, sharex="col", sharey="row", squeeze=False)
        for row, (column, label) in zip(grid, (_LOSS, score), strict=True):
            for course in courses:
                epochs = course.metrics["epoch"].to_numpy(dtype=float)
                _mode_line(row[0], course, column, epochs)
                _mode_line(row[1], course, column, course.clock / unit)
            row[0].set_ylabel(label)
            for axes in row:
                light_grid(axes)
        grid[1, 0].set_ylim(0, 1)  # the score
        most = max(float(course.metrics["epoch"].max()) for course in courses)
        grid[1, 0].set(xlabel="epoch", xlim=(0, most + 0.5))
        grid[1, 0].xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        grid[1, 1].set(xlabel=f"{name} of training and validation", xlim=(0, None))
        legend(figure, grid[0, 0])
    save_figure(figure, path)


def _unit(seconds: float) -> tuple[int, str]:
    """The unit of time for `seconds`: seconds per unit, and name of the unit."""
    if seconds >= HOURS_FROM:
        return 3600, "hours"
    return (60, "minutes") if seconds >= MINUTES_FROM else (1, "seconds")


def _mode_line(axes: Axes, course: ModeCourse, column: str, ends: NDArray[np.float64]) -> None:
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


_TRADEOFF_SIZE = (8.6, 5.0)
_ROOM = 0.12  # margin at both ends of both axes, as a share of the range
_LEAST = (4.0, 0.02)  # smallest range of the axes, in percent and in score


@dataclass(frozen=True)
class RulePoint:
    """A rule: its name, its group, and its time saved and score.

    `saved` is in percent of the time of an iteration, `score` in [0, 1].
    """

    name: str
    scope: str
    saved: Estimate
    score: Estimate


def draw_tradeoff(rules: Sequence[RulePoint], path: Path, score: str) -> None:
    """Draws a point with both intervals per rule, labelled with its name.

    Args:
        rules: At least one.
        path: The PNG to write.
        score: Name of the score with its range.
    """
    with styled():
        figure = Figure(figsize=_TRADEOFF_SIZE, dpi=DPI)
        axes = figure.add_axes((0.09, 0.11, 0.88, 0.8))
        for number, scope in enumerate(dict.fromkeys(rule.scope for rule in rules)):
            _points(axes, [rule for rule in rules if rule.scope == scope], number)
        axes.axvline(0, color=GREY, linestyle="--", linewidth=0.9)
        _dress_tradeoff(axes, rules, score)
        legend(figure, axes)
        labels = [Label(rule.name, rule.saved.value, rule.score.value) for rule in rules]
        place_labels(axes, labels, [box for rule in rules for box in _bars(axes, rule)])
    save_figure(figure, path)


def _points(axes: Axes, rules: Sequence[RulePoint], number: int) -> None:
    axes.errorbar(
        [rule.saved.value for rule in rules],
        [rule.score.value for rule in rules],
        xerr=interval_lengths([rule.saved for rule in rules]),
        yerr=interval_lengths([rule.score for rule in rules]),
        fmt=MARKERS[number % len(MARKERS)],
        color=COLOURS[number % len(COLOURS)],
        markersize=6,
        elinewidth=0.9,
        capsize=2.5,
        label=rules[0].scope,
        zorder=3,
    )


def _bars(axes: Axes, rule: RulePoint) -> list[Bbox]:
    """The bounding boxes of both intervals, in pixels."""
    (left, low), (x, y), (right, high) = axes.transData.transform(
        list(zip(rule.saved, rule.score, strict=True))
    )
    return [Bbox([[left, y - 2], [right, y + 2]]), Bbox([[x - 2, low], [x + 2, high]])]


def _dress_tradeoff(axes: Axes, rules: Sequence[RulePoint], score: str) -> None:
    saved = [0.0, *(end for rule in rules for end in rule.saved)]
    scores = [end for rule in rules for end in rule.score]
    axes.set_xlim(*_limits(saved, _LEAST[0]))
    low, high = _limits(scores, _LEAST[1])
    axes.set_ylim(max(-0.01, low), min(1.01, high))
    axes.set(
        xlabel="time saved per iteration compared with full fine-tuning (%)",
        ylabel=_on_held_out(score),
    )
    light_grid(axes)


def _on_held_out(score: str) -> str:
    name, _, scale = score.partition(" (")
    return f"{name} on the held-out images ({scale}"


def _limits(values: Sequence[float], least: float) -> tuple[float, float]:
    wide = max(max(values) - min(values), least)
    middle = (max(values) + min(values)) / 2
    half = wide * (0.5 + _ROOM)
    return middle - half, middle + half
