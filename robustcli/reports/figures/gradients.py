"""How large the gradients of parameter tensors were over the iterations of a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from robustcli.reports.figures.canvas import COLOURS, GREY, MARKERS, save, styled, wrapped
from robustcli.reports.figures.ends import EndLabel, label_ends
from robustcli.reports.figures.log_scale import LogScale, log_scale

ABREAST = 12  # lines that one panel can hold with a label each
COLUMNS = 4
# Frozen or not is told by colour, dashes and, in print, by the hollow marker.
TRAINED, FROZEN = COLOURS[0], COLOURS[1]
_SIZE = (8.6, 4.6)
_LETTER = 0.074  # inches that a letter of a label takes


@dataclass(frozen=True)
class Trace:
    """One tensor.

    Args:
        label: What tells it from the others.
        kind: The panel it belongs to where there are many.
        values: Its statistic per iteration, at least one; NaN where it had no gradient.
        mean: What a rule compares; None where it never had a gradient.
        frozen: Whether it was frozen.
    """

    label: str
    kind: str
    values: NDArray[np.float64]
    mean: float | None
    frozen: bool


@dataclass(frozen=True)
class Limit:
    """Where the line between frozen and trained runs, in the unit of the statistic."""

    name: str
    value: float


def draw_gradients(
    traces: Sequence[Trace], limit: Limit | None, statistic: str, path: Path
) -> None:
    """Draws a line per trace: one panel with a label each, or a panel per kind.

    Args:
        traces: At least one, all with as many iterations.
        limit: None where the rule has none.
        statistic: What is drawn, in words.
        path: The PNG to write.
    """
    scale = _scale(traces, limit)
    with styled():
        if len(traces) <= ABREAST:
            figure = _single(traces, limit, scale, statistic)
        else:
            figure = _panels(traces, limit, scale, statistic)
    save(figure, path)


def _single(
    traces: Sequence[Trace], limit: Limit | None, scale: LogScale, statistic: str
) -> Figure:
    figure = Figure(figsize=_SIZE)
    ends = [_end(trace, scale) for trace in traces]
    margin = (0.45 + _LETTER * max(len(end.text) for end in ends)) / _SIZE[0]
    axes = figure.add_axes((0.1, 0.115, max(0.3, 0.9 - margin), 0.795))
    for number, trace in enumerate(traces):
        _line(axes, trace, scale, MARKERS[number % len(MARKERS)])
    _dress(axes, traces, limit, scale)
    axes.set(xlabel="iteration", ylabel=statistic)
    label_ends(axes, ends)
    _legend(figure, traces, limit)
    return figure


def _panels(
    traces: Sequence[Trace], limit: Limit | None, scale: LogScale, statistic: str
) -> Figure:
    kinds = list(dict.fromkeys(trace.kind for trace in traces))
    columns = min(COLUMNS, len(kinds))
    lines = -(-len(kinds) // columns)
    size = (max(5.6, 0.8 + 2.1 * columns), 1.1 + 1.8 * lines)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, kind in zip(grid.flat, kinds, strict=False):
        mine = [trace for trace in traces if trace.kind == kind]
        for trace in mine:
            _line(axes, trace, scale, "")
        told = f"{kind}: {sum(trace.frozen for trace in mine)}/{len(mine)} frozen"
        axes.set_title(wrapped(told, 26), fontsize=8.5)
        _dress(axes, mine, limit, scale)
    for axes in grid.flat[len(kinds) :]:
        axes.set_visible(False)
    for axes in grid.flat[max(0, len(kinds) - columns) : len(kinds)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("iteration", fontsize=9)
    figure.supylabel(wrapped(statistic, 48), fontsize=9)
    _legend(figure, traces, limit)
    return figure


def _line(axes: Axes, trace: Trace, scale: LogScale, marker: str) -> None:
    """The course of a tensor, and its mean just after the last iteration."""
    colour = FROZEN if trace.frozen else TRAINED
    crowded = not marker
    iterations = np.arange(1, len(trace.values) + 1)
    face = "white" if trace.frozen else colour
    axes.plot(
        iterations,
        scale.place(trace.values),
        color=colour,
        linestyle="--" if trace.frozen else "-",
        linewidth=0.8 if crowded else 1.1,
        alpha=0.75,
        marker="." if len(iterations) == 1 else "",
        label=trace.label,
        zorder=3 if trace.frozen else 2,
    )
    if trace.mean is not None:
        axes.plot(
            [_mean_at(trace)],
            scale.place(np.array([trace.mean])),
            color=colour,
            marker=marker or "_",
            markerfacecolor=face,
            markersize=5 if crowded else 6,
            zorder=4,
        )


def _mean_at(trace: Trace) -> float:
    return len(trace.values) * 1.03 + 0.3


def _end(trace: Trace, scale: LogScale) -> EndLabel:
    """Where the label of a tensor belongs; a tensor without any gradient is said to have none."""
    colour = FROZEN if trace.frozen else TRAINED
    if trace.mean is None:
        return EndLabel(f"{trace.label} (none)", None, scale.floor, GREY)
    height = float(scale.place(np.array([trace.mean]))[0])
    return EndLabel(trace.label, _mean_at(trace), height, colour)


def _scale(traces: Sequence[Trace], limit: Limit | None) -> LogScale:
    marks = [] if limit is None else [limit.value]
    return log_scale(np.concatenate([trace.values for trace in traces]), marks)


def _dress(axes: Axes, traces: Sequence[Trace], limit: Limit | None, scale: LogScale) -> None:
    if limit is not None and limit.value > 0:
        axes.axhline(limit.value, color="black", linestyle=":", linewidth=1.3, zorder=5)
    last = max(len(trace.values) for trace in traces)
    axes.set_xlim(1 - 0.02 * last, last * 1.06 + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    scale.apply(axes)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, traces: Sequence[Trace], limit: Limit | None) -> None:
    several = len(traces) > ABREAST
    marker = "_" if several else "o"
    handles = []
    if any(not trace.frozen for trace in traces):
        handles.append(Line2D([], [], color=TRAINED, marker=marker, label="trained"))
    if any(trace.frozen for trace in traces):
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
