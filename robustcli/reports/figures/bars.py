"""The transforms that models stand best and worst, as grouped bars with 95 % intervals."""

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
    wrapped,
)
from robustcli.reports.measure import TOP1, Measure
from robustcli.reports.numbers import cell_label
from robustcli.reports.ranking import Extremes

GROUP = 0.84
LABELS_UPRIGHT_FROM = 3
HEADROOM = 1.14


def draw_bars(table: pd.DataFrame, ends: Extremes, path: Path, measure: Measure = TOP1) -> None:
    """Draws figure 2 of the robustness report: best on the left, worst on the right.

    Args:
        table: `metrics.table` of a run.
        ends: The transforms to show; at least one best.
        path: The PNG to write.
        measure: Of which column they are the ends.
    """
    panels = [("best", ends.best), ("worst", ends.worst)]
    shown = [(word, cells) for word, cells in panels if cells]
    models = [str(name) for name in table["model"].unique()]
    with styled():
        width = max(5.2 * len(shown), legend_width(models))
        figure = Figure(figsize=(width, 3.9), layout="constrained")
        row = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for letter, axes, (word, cells) in zip("ab", row, shown, strict=False):
            _panel(axes, table, cells, models, measure)
            axes.set_title(f"({letter}) {len(cells)} {word}", loc="left")
        measure_axis(row[0], "y", measure)
        row[0].set_ylim(0, _top(table, [*ends.best, *ends.worst], measure))
        legend(figure, row[0])
    save(figure, path)


def _panel(
    axes: Axes,
    table: pd.DataFrame,
    cells: Sequence[tuple[str, int]],
    models: Sequence[str],
    measure: Measure,
) -> None:
    for position, (model, style) in enumerate(looks(models)):
        rows = table[table["model"] == model].set_index(["transform", "severity"])
        offset = (position - (len(models) - 1) / 2) * GROUP / len(models)
        _bars(axes, rows.loc[list(cells)], offset, GROUP / len(models), (model, style), measure)
    labels = [wrapped(cell_label(*cell)) for cell in cells]
    axes.set_xticks(range(len(cells)), labels)
    axes.tick_params(axis="x", length=0)
    measure_axis(axes, "y", measure)
    axes.set_ylabel("")
    axes.set_xlim(-0.5, max(len(cells), 2) - 0.5)


def _top(table: pd.DataFrame, cells: Sequence[tuple[str, int]], measure: Measure) -> float:
    """The upper end of the axis: the highest interval shown, and room for its number."""
    rows = table.set_index(["transform", "severity"]).loc[list(cells)]
    return measure.scale * float(measure.ends(rows)[1].max()) * HEADROOM


def _bars(
    axes: Axes,
    rows: pd.DataFrame,
    offset: float,
    width: float,
    series: tuple[str, Look],
    measure: Measure,
) -> None:
    name, style = series
    centres = [index + offset for index in range(len(rows))]
    axes.bar(
        centres,
        measure.scale * rows[measure.column],
        width * 0.94,
        yerr=error_bars(rows, measure),
        label=name,
        color=style.colour,
        hatch=style.hatch,
        edgecolor="white",
        error_kw={"elinewidth": 1, "capsize": 2.5, "ecolor": "#222222"},
    )
    upright = width < GROUP / (LABELS_UPRIGHT_FROM - 1) - 1e-9
    tops = measure.scale * measure.ends(rows)[1]
    for centre, top, (_, row) in zip(centres, tops, rows.iterrows(), strict=True):
        axes.annotate(
            measure.show(row[measure.column], int(row["n"])),
            (centre, top),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=7.5,
            rotation=90 if upright else 0,
        )
