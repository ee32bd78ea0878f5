"""All transforms in one picture: a dot with its 95 % interval per model, best transform on top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustcli.reports.figures.canvas import (
    Look,
    error_bars,
    legend,
    legend_width,
    looks,
    measure_axis,
    save,
    styled,
)
from robustcli.reports.measure import TOP1, Measure
from robustcli.reports.numbers import cell_label

SPREAD = 0.62
MARGIN = 0.03  # of the whole scale


def draw_dots(table: pd.DataFrame, path: Path, measure: Measure = TOP1) -> None:
    """Draws one line per cell of `table`, and each model's clean number as a dashed line.

    Args:
        table: Rows of `metrics.table` to show, `identity` among them if it was measured.
        path: The PNG to write.
        measure: What is drawn.
    """
    rows = table[table[measure.column].notna()]
    models = [str(name) for name in table["model"].unique()]
    order = _order(rows, measure)
    with styled():
        height = 1.3 + len(order) * (0.17 + 0.085 * len(models))
        width = max(7.6, legend_width(models))
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        for position, (model, style) in enumerate(looks(models)):
            offset = (position - (len(models) - 1) / 2) * SPREAD / len(models)
            _model(axes, rows[rows["model"] == model], order, offset, (model, style), measure)
        _dress(axes, rows, order, measure)
        legend(figure, axes)
    save(figure, path)


def _order(rows: pd.DataFrame, measure: Measure) -> list[tuple[str, int]]:
    """The cells from the highest mean to the lowest, `identity` first."""
    means = rows.groupby(["transform", "severity"], sort=False)[measure.column].mean()
    order = [(str(t), int(s)) for t, s in means.sort_values(ascending=False, kind="stable").index]
    return sorted(order, key=lambda cell: cell[0] != "identity")


def _model(
    axes: Axes,
    rows: pd.DataFrame,
    order: Sequence[tuple[str, int]],
    offset: float,
    series: tuple[str, Look],
    measure: Measure,
) -> None:
    name, style = series
    lines = [order.index((row.transform, row.severity)) + offset for row in rows.itertuples()]
    axes.errorbar(
        measure.scale * rows[measure.column],
        lines,
        xerr=error_bars(rows, measure),
        fmt=style.marker,
        color=style.colour,
        markersize=4.5,
        elinewidth=1.1,
        label=name,
    )
    clean = rows.loc[rows["transform"] == "identity", measure.column]
    if len(clean):
        place = measure.scale * clean.iloc[0]
        axes.axvline(place, color=style.colour, linestyle="--", linewidth=0.8)


def _dress(
    axes: Axes, rows: pd.DataFrame, order: Sequence[tuple[str, int]], measure: Measure
) -> None:
    names = ["identity (clean)" if cell[0] == "identity" else cell_label(*cell) for cell in order]
    axes.set_yticks(range(len(order)), names)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    measure_axis(axes, "x", measure)
    for line in range(1, len(order)):
        axes.axhline(line - 0.5, color="#eeeeee", linewidth=0.6, zorder=0)
    lowest, highest = measure.ends(rows)
    low = measure.scale * (float(lowest.min()) - MARGIN)
    high = measure.scale * (float(highest.max()) + MARGIN)
    axes.set_xlim(max(0.0, low), min(measure.scale, high))
