"""A measure over severity, one panel per transform, with the line where half of it is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from robustcli.evaluation.breaking import KEPT
from robustcli.reports.figures.canvas import (
    GREY,
    Look,
    legend,
    legend_width,
    looks,
    save,
    styled,
    wrapped,
)
from robustcli.reports.measure import TOP1, Measure

COLUMNS = 5


def draw_multiples(
    table: pd.DataFrame, clean: pd.DataFrame, path: Path, measure: Measure = TOP1
) -> None:
    """Draws one panel per transform in `table`.

    Args:
        table: Rows of `metrics.table` with severities above 0, at least two per transform.
        clean: The `identity` rows of the same models; empty if it was not measured.
        path: The PNG to write.
        measure: What is drawn.
    """
    transforms = [str(name) for name in table["transform"].unique()]
    columns = min(COLUMNS, len(transforms))
    lines = -(-len(transforms) // columns)
    with styled():
        width = max(1.2 + 1.75 * columns, legend_width(list(table["model"].unique())))
        figure = Figure(figsize=(width, 1.0 + 1.75 * lines), layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes, transform in zip(grid.flat, transforms, strict=False):
            rows = table[table["transform"] == transform]
            _panel(axes, rows, clean, list(table["model"].unique()), measure)
            axes.set_title(wrapped(transform, 20), fontsize=8.5)
        for axes in grid.flat[len(transforms) :]:
            axes.set_visible(False)
        _dress(figure, grid[0, 0], sorted(table["severity"].unique()), measure)
        _show_ticks_above_gaps(grid, len(transforms), columns)
    save(figure, path)


def _panel(
    axes: Axes, rows: pd.DataFrame, clean: pd.DataFrame, models: list[str], measure: Measure
) -> None:
    for model, style in looks(models):
        _line(axes, rows[rows["model"] == model], (model, style), measure)
        untouched = clean.loc[clean["model"] == model, measure.column].dropna()
        for part, dashes in [(whole * kept, d) for whole in untouched for kept, d in _LEVELS]:
            level = measure.scale * part
            axes.axhline(level, color=style.colour, linestyle=dashes, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.6)


_LEVELS = ((1.0, "--"), (KEPT, ":"))


def _line(axes: Axes, rows: pd.DataFrame, series: tuple[str, Look], measure: Measure) -> None:
    name, style = series
    rows = rows.sort_values("severity")
    severities = rows["severity"].to_numpy()
    low, high = measure.ends(rows)
    axes.fill_between(
        severities,
        measure.scale * low.to_numpy(),
        measure.scale * high.to_numpy(),
        color=style.colour,
        alpha=0.18,
        linewidth=0,
    )
    axes.plot(
        severities,
        measure.scale * rows[measure.column].to_numpy(),
        color=style.colour,
        marker=style.marker,
        markersize=3.5,
        linewidth=1.2,
        label=name,
    )


def _dress(figure: Figure, first: Axes, severities: list[int], measure: Measure) -> None:
    first.set_ylim(0, measure.scale)
    first.set_xticks(severities)
    first.set_xlim(min(severities) - 0.3, max(severities) + 0.3)
    figure.supxlabel("severity", fontsize=9)
    figure.supylabel(measure.axis, fontsize=9)
    first.plot([], [], color=GREY, linestyle="--", linewidth=0.8, label="clean")
    first.plot([], [], color=GREY, linestyle=":", linewidth=0.8, label="half of clean")
    legend(figure, first)


def _show_ticks_above_gaps(grid: NDArray[np.object_], panels: int, columns: int) -> None:
    """Shared axes label the last line only; panels above an unused place need labels too."""
    for axes in grid.flat[max(0, panels - columns) : panels]:
        axes.tick_params(labelbottom=True)
