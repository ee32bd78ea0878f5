"""Figures of an evaluation: bars, dots, curves, differences, ranks, reliability, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from robustcli.metrics.class_scores import ReliabilityBin
from robustcli.metrics.intervals import wilson_interval
from robustcli.metrics.severity_scores import BREAKING_RETENTION
from robustcli.metrics.verdicts import Verdict
from robustcli.reports.figures.canvas import (
    GREY,
    Look,
    error_bars,
    grid_shape,
    legend,
    legend_above,
    legend_label,
    legend_width,
    light_grid,
    looks,
    measure_axis,
    panel_grid,
    save_figure,
    save_with_pdf,
    styled,
    wrapped,
)
from robustcli.reports.numbers import cell_label, fraction
from robustcli.reports.scoring import Extremes, Measure

# The transforms with the best and worst scores, as grouped bars with 95 % intervals.


_GROUP = 0.84
_LABELS_UPRIGHT_FROM = 3
_LINE_HEIGHT, _PANEL = 0.1, 4.6  # inches: an upright number needs a bar of this width; a panel
_HEADROOM = 1.14


def draw_bars(table: pd.DataFrame, ends: Extremes, path: Path, measure: Measure) -> None:
    """Draws figure 2 of the robustness report: best transforms on the left, worst on the right.

    Args:
        table: `cell_table.table` of a run.
        ends: The transforms to show; at least one best.
        path: The PNG to write.
        measure: The score by which `ends` were selected.
    """
    panels = [("best", ends.best), ("worst", ends.worst)]
    shown = [(word, cells) for word, cells in panels if cells]
    models = [str(name) for name in table["model"].unique()]
    with styled():
        width = max(5.2 * len(shown), legend_width(models))
        figure = Figure(figsize=(width, 3.9), layout="constrained")
        row = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for letter, axes, (word, cells) in zip("ab", row, shown, strict=False):
            _bar_panel(axes, table, cells, models, measure)
            axes.set_title(f"({letter}) {len(cells)} {word}", loc="left")
        measure_axis(row[0], "y", measure)
        row[0].set_ylim(0, _top(table, [*ends.best, *ends.worst], measure))
        legend(figure, row[0])
    save_figure(figure, path)


def _bar_panel(
    axes: Axes,
    table: pd.DataFrame,
    cells: Sequence[tuple[str, int]],
    models: Sequence[str],
    measure: Measure,
) -> None:
    for position, (model, style) in enumerate(looks(models)):
        rows = table[table["model"] == model].set_index(["transform", "severity"])
        offset = (position - (len(models) - 1) / 2) * _GROUP / len(models)
        _bars(axes, rows.loc[list(cells)], offset, _GROUP / len(models), (model, style), measure)
    labels = [wrapped(cell_label(*cell)) for cell in cells]
    axes.set_xticks(range(len(cells)), labels)
    axes.tick_params(axis="x", length=0)
    measure_axis(axes, "y", measure)
    axes.set_ylabel("")
    axes.set_xlim(-0.5, max(len(cells), 2) - 0.5)


def _top(table: pd.DataFrame, cells: Sequence[tuple[str, int]], measure: Measure) -> float:
    """Upper end of the axis: the highest interval shown, else 1, plus space for its number."""
    rows = table.set_index(["transform", "severity"]).loc[list(cells)]
    return measure.scale * (float(measure.ends(rows)[1].max()) or 1) * _HEADROOM


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
        label=legend_label(name),
        color=style.colour,
        hatch=style.hatch,
        edgecolor="white",
        error_kw={"elinewidth": 1, "capsize": 2.5, "ecolor": "#222222"},
    )
    if width * _PANEL / max(len(rows), 2) < _LINE_HEIGHT:
        return  # the numbers would cover each other
    upright = width < _GROUP / (_LABELS_UPRIGHT_FROM - 1) - 1e-9
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


# All transforms in one figure: a dot with its 95 % interval per model, best transform on top.


_SPREAD = 0.62
_MARGIN = 0.03  # share of the scale


def draw_dots(table: pd.DataFrame, path: Path, measure: Measure) -> None:
    """Draws one row per cell of `table`, and each model's clean score as a dashed line.

    Args:
        table: Rows of `cell_table.table` to show, including `identity` if it was measured.
        path: The PNG to write.
        measure: The score to draw.
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
            offset = (position - (len(models) - 1) / 2) * _SPREAD / len(models)
            _model(axes, rows[rows["model"] == model], order, offset, (model, style), measure)
        _dress_dots(axes, rows, order, measure)
        legend(figure, axes)
    save_figure(figure, path)


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
        label=legend_label(name),
    )
    clean = rows.loc[rows["transform"] == "identity", measure.column]
    if len(clean):
        place = measure.scale * clean.iloc[0]
        axes.axvline(place, color=style.colour, linestyle="--", linewidth=0.8)


def _dress_dots(
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
    low = measure.scale * (float(lowest.min()) - _MARGIN)
    high = measure.scale * (float(highest.max()) + _MARGIN)
    axes.set_xlim(max(0.0, low), min(measure.scale, high))


# A score over severity, one panel per transform, with a line at half of the clean score.


_COLUMNS = 5


def draw_multiples(table: pd.DataFrame, clean: pd.DataFrame, path: Path, measure: Measure) -> None:
    """Draws one panel per transform in `table`.

    Args:
        table: Rows of `cell_table.table` with severities above 0, at least two per transform.
        clean: The `identity` rows of the same models; empty if it was not measured.
        path: The PNG to write.
        measure: The score to draw.
    """
    transforms = [str(name) for name in table["transform"].unique()]
    models = [str(name) for name in table["model"].unique()]
    lines, columns = shape = grid_shape(len(transforms), _COLUMNS)
    with styled():
        width = max(1.2 + 1.75 * columns, legend_width(models))
        figure = Figure(figsize=(width, 1.0 + 1.75 * lines), layout="constrained")
        panels = panel_grid(figure, len(transforms), shape, outer=True, sharex=True, sharey=True)
        for axes, transform in zip(panels, transforms, strict=True):
            _curve_panel(axes, table[table["transform"] == transform], clean, models, measure)
            axes.set_title(wrapped(transform, 20), fontsize=8.5)
        _dress_curves(figure, panels[0], sorted(table["severity"].unique()), measure)
    save_figure(figure, path)


def _curve_panel(
    axes: Axes, rows: pd.DataFrame, clean: pd.DataFrame, models: list[str], measure: Measure
) -> None:
    for model, style in looks(models):
        _line(axes, rows[rows["model"] == model], (model, style), measure)
        untouched = clean.loc[clean["model"] == model, measure.column].dropna()
        for part, dashes in [
            (untouched_value * share, d) for untouched_value in untouched for share, d in _LEVELS
        ]:
            level = measure.scale * part
            axes.axhline(level, color=style.colour, linestyle=dashes, linewidth=0.8)
    light_grid(axes)


_LEVELS = ((1.0, "--"), (BREAKING_RETENTION, ":"))


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
        label=legend_label(name),
    )


def _dress_curves(figure: Figure, first: Axes, severities: list[int], measure: Measure) -> None:
    first.set_ylim(0, measure.scale)
    first.set_xticks(severities)
    first.set_xlim(min(severities) - 0.3, max(severities) + 0.3)
    figure.supxlabel("severity", fontsize=9)
    figure.supylabel(measure.axis, fontsize=9)
    first.plot([], [], color=GREY, linestyle="--", linewidth=0.8, label="clean")
    first.plot([], [], color=GREY, linestyle=":", linewidth=0.8, label="half of clean")
    legend(figure, first)


# Differences of pairs of models, transform by transform, with their paired intervals.


PAIRS_ABREAST = 3


def draw_differences(
    pairs: Mapping[tuple[str, str], Sequence[Verdict]],
    models: Sequence[str],
    path: Path,
    measure: Measure,
) -> None:
    """Draws a panel per pair: the first model's score minus the second's, largest on top.

    Significant differences have the colour and marker of the model that is ahead, others are hollow
    and grey.

    Args:
        pairs: Verdicts by pair, at least one pair; the first PAIRS_ABREAST pairs are drawn.
        models: All models of the run; their positions determine the colours.
        path: The PNG to write.
        measure: The score of the differences.
    """
    drawn = list(pairs.items())[:PAIRS_ABREAST]
    style = dict(looks(models))
    lines = max(len(verdicts) for _, verdicts in drawn)
    with styled():
        size = (3.4 + 3.6 * len(drawn), 1.5 + 0.21 * lines)
        figure = Figure(figsize=size, layout="constrained")
        row = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axes, ((first, second), verdicts) in zip(row, drawn, strict=True):
            ordered = sorted(verdicts, key=lambda v: (v.transform != "identity", -v.difference))
            for place, verdict in enumerate(ordered):
                _difference(axes, place, verdict, style, measure)
            axes.set_yticks(range(len(ordered)), [_label(verdict) for verdict in ordered])
            axes.set_ylim(len(ordered) - 0.4, -0.6)
            axes.tick_params(axis="y", length=0)
            axes.axvline(0, color="#222222", linewidth=0.9)
            measure_axis(axes, "x", measure)
            axes.set_xlabel(f"{_minus(first, second)} ({measure.unit})")
        _difference_legend(figure, [name for pair, _ in drawn for name in pair], style)
    save_figure(figure, path)


def _minus(first: str, second: str) -> str:
    """The difference of two models; long names start on a new line, to be as wide as the axis."""
    names = [wrapped(name, 28) for name in (first, second)]
    return ("\nminus " if "\n" in "".join(names) else " minus ").join(names)


def _label(verdict: Verdict) -> str:
    clean = verdict.transform == "identity"
    return "identity (clean)" if clean else cell_label(verdict.transform, verdict.severity or 0)


def _difference(
    axes: Axes, place: int, verdict: Verdict, style: Mapping[str, Look], measure: Measure
) -> None:
    ahead = {"first ahead": verdict.first, "second ahead": verdict.second}.get(verdict.outcome)
    colour, marker = (GREY, "o") if ahead is None else (style[ahead].colour, style[ahead].marker)
    value = measure.scale * verdict.difference
    if verdict.low is not None and verdict.high is not None:
        ends = [measure.scale * verdict.low, measure.scale * verdict.high]
        axes.plot(ends, [place, place], color=colour, linewidth=1.3, solid_capstyle="butt")
    face = "white" if ahead is None else colour
    axes.plot([value], [place], marker, color=colour, markerfacecolor=face, markersize=5)


def _difference_legend(figure: Figure, names: Sequence[str], style: Mapping[str, Look]) -> None:
    names = list(dict.fromkeys(names))
    handles = [
        Line2D([], [], color=style[name].colour, marker=style[name].marker) for name in names
    ]
    open_mark = Line2D([], [], color=GREY, marker="o", markerfacecolor="white")
    labels = [*(f"{name} ahead" for name in names), "no difference shown"]
    legend_above(figure, [*handles, open_mark], labels)


# Reliability: accuracy over confidence, one panel per transform.


_RELIABILITY_COLUMNS = 6
BIN_IMAGES = 5  # smaller bins are noise; they are drawn only if no bin is larger


def draw_reliability(
    panels: Mapping[str, Mapping[str, Sequence[ReliabilityBin]]], path: Path
) -> None:
    """Draws the share of correct predictions over each bin's mean confidence, with the diagonal.

    The bars are 95 % Wilson intervals; the area of a marker grows with the number of images in its
    bin.

    Args:
        panels: The bins of each model by panel title, in the order of the run; at least one panel.
        path: The PNG to write.
    """
    lines, columns = shape = grid_shape(len(panels), _RELIABILITY_COLUMNS)
    models = list(next(iter(panels.values())))
    with styled():
        width = max(1.0 + 1.65 * columns, legend_width(models), 3.6)
        figure = Figure(figsize=(width, 1.1 + 1.75 * lines), layout="constrained")
        grid = panel_grid(figure, len(panels), shape, outer=True)
        for axes, (title, bins) in zip(grid, panels.items(), strict=True):
            # Equal limits instead of shared axes: these would search all panels for every tick.
            axes.set(xlim=(0, 102), ylim=(0, 102), xticks=[0, 50, 100], yticks=[0, 50, 100])
            axes.plot([0, 100], [0, 100], color="#999999", linestyle=":", linewidth=0.9)
            for model, style in looks(models):
                _reliability(axes, bins[model], (model, style))
            light_grid(axes)
            axes.set_aspect("equal")
            axes.set_title(wrapped(title, 20), fontsize=8.5)
        figure.supxlabel("confidence: probability of the prediction (%)", fontsize=9)
        figure.supylabel("right (%)", fontsize=9)
        legend(figure, grid[0])
    save_figure(figure, path)


def _reliability(axes: Axes, bins: Sequence[ReliabilityBin], series: tuple[str, Look]) -> None:
    name, style = series
    total = sum(b.n for b in bins)
    bins = [b for b in bins if b.n >= BIN_IMAGES] or bins
    x, y = [100 * b.confidence for b in bins], [100 * b.correct / b.n for b in bins]
    ends = [wilson_interval(b.correct, b.n) for b in bins]
    axes.vlines(
        x,
        [100 * end.low for end in ends],
        [100 * end.high for end in ends],
        color=style.colour,
        linewidth=0.8,
        alpha=0.45,
    )
    axes.plot(x, y, color=style.colour, linewidth=1.1)
    sizes = [4 + 60 * b.n / total for b in bins]
    axes.scatter(x, y, s=sizes, color=style.colour, marker=style.marker, linewidth=0)
    axes.plot(
        [], [], color=style.colour, marker=style.marker, markersize=4, label=legend_label(name)
    )


# The probability of each rank of a model.


SMALLEST_LABEL = 0.08  # share of a bar; a smaller part has no space for its number


def draw_ranks(models: Sequence[str], probabilities: Sequence[Sequence[float]], path: Path) -> None:
    """Draws a bar per model, divided by the probability of each rank.

    Args:
        models: At least one, the best first.
        probabilities: Probabilities of the first, second, ... rank, for each model.
        path: The PNG to write.
    """
    shares = np.asarray(probabilities)  # (models, ranks)
    colours = matplotlib.colormaps["Blues_r"](np.linspace(0.1, 0.85, shares.shape[1]))
    with styled():
        figure = Figure(figsize=(8.6, 1.1 + 0.42 * len(models)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(models))
        for rank, colour in enumerate(colours):
            axes.barh(
                range(len(models)),
                shares[:, rank],
                left=left,
                color=colour,
                edgecolor="white",
                label=f"rank {rank + 1}",
            )
            for line, share in enumerate(shares[:, rank]):
                if share >= SMALLEST_LABEL:
                    axes.text(
                        left[line] + share / 2,
                        line,
                        f"{100 * share:.0f} %",
                        ha="center",
                        va="center",
                        color="white" if colour[:3].mean() < 0.6 else "black",
                    )
            left += shares[:, rank]
        axes.set_yticks(range(len(models)), [wrapped(model, 30) for model in models])
        axes.set(xlim=(0, 1), ylim=(len(models) - 0.5, -0.5))
        axes.set_xlabel("probability of each rank")
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        legend(figure, axes)
    save_figure(figure, path)


# Dice and confusion of the classes of masks.


# Inches.
_CELL, _LEFT, _TOP, _BOTTOM = (0.62, 0.3), 2.2, 0.55, 0.35
_EDGE = 0.15
_SQUARE, _LABELS, _HEAD = 0.78, 1.4, 0.55
_DARK = 0.55  # share of the scale from which numbers are white


def draw_class_dice(
    cells: Mapping[tuple[str, int], NDArray[np.float64]], names: Sequence[str], path: Path
) -> None:
    """Draws the dice of each class (a column) under each transform (a row) with its number.

    Args:
        cells: Dice of each class, in [0, 1], by transform and severity; at least one entry.
        names: Names of the classes.
        path: The PNG to write.
    """
    values = np.stack(list(cells.values()))
    width = _LEFT + _CELL[0] * len(names) + _EDGE
    height = _TOP + _CELL[1] * len(cells) + _BOTTOM
    with styled():
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((
            _LEFT / width, _BOTTOM / height,
            _CELL[0] * len(names) / width, _CELL[1] * len(cells) / height,
        ))  # fmt: skip
        _numbered(axes, values, values, [[fraction(v) for v in line] for line in values])
        axes.set_xticks(range(len(names)), [wrapped(name, 9) for name in names])
        axes.set_yticks(range(len(cells)), [cell_label(*cell) for cell in cells])
        axes.set_xlabel("dice (0 to 1)")
    save_figure(figure, path)


def draw_pixel_confusion(pixels: NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """Draws the share of each true class's pixels (a row) predicted as each class (a column).

    Args:
        pixels: (K + 1, K + 1), background first, true classes in rows.
        names: Names of the K classes.
        path: The PNG to write.
    """
    sums = pixels.sum(1, keepdims=True)
    shares = np.divide(pixels, sums, out=np.zeros(pixels.shape), where=sums > 0)
    labels = ["background", *names]
    side = _SQUARE * len(labels)
    width, height = _LABELS + side + _EDGE, _HEAD + side + _BOTTOM
    texts = [
        [_percent(share, total) for share in line]
        for line, total in zip(shares, sums[:, 0], strict=True)
    ]
    with styled():
        figure = Figure(figsize=(width, height))
        place = (_LABELS / width, _BOTTOM / height, side / width, side / height)
        axes = figure.add_axes(place)
        _numbered(axes, shares, np.sqrt(shares), texts)
        axes.set_xticks(range(len(labels)), [wrapped(name, 9) for name in labels])
        axes.set_yticks(range(len(labels)), [wrapped(name, 14) for name in labels])
        axes.set(xlabel="predicted (% of the true pixels)", ylabel="true")
    save_figure(figure, path)


def _percent(share: float, total: int) -> str:
    if not total:
        return "none"
    shown = f"{100 * share:.1f}"
    return "< 0.1" if shown == "0.0" and share else shown


def _numbered(
    axes: Axes, values: NDArray[np.float64], shades: NDArray[np.float64],
    texts: Sequence[Sequence[str]],
) -> None:  # fmt: skip
    """Draws squares from white (0) to dark blue (1) with their numbers, column names on top."""
    axes.imshow(shades, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(values.shape):
        colour = "white" if shades[row, column] > _DARK else "black"
        axes.text(
            column, row, texts[row][column], ha="center", va="center", color=colour, fontsize=8
        )
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.spines[:].set_visible(False)


# The confusion matrix of a classifier.


MOST_CONFUSED_CLASSES = 100
"""Largest number of classes for which a cell of the matrix is not smaller than a letter."""
COUNTED_UP_TO, _NAMED_UP_TO = 20, 40


def draw_confusions(names: Sequence[str], counts: NDArray[np.int64], path: Path) -> None:
    """Draws a confusion matrix: a row per true class, a column per predicted class.

    The darkness of a cell is its share of the row; its number is the number of images.

    Args:
        names: Names of the classes, at most MOST_CONFUSED_CLASSES.
        counts: Images by true and predicted class, (K, K).
        path: The PNG to write; the PDF is written next to it.
    """
    classes = len(names)
    sums = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, sums, out=np.zeros(counts.shape), where=sums > 0)
    with styled():
        side = min(9.0, 2.6 + 0.42 * classes)
        figure = Figure(figsize=(side + 0.9, side), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        _name_classes(axes, names)
        if classes <= COUNTED_UP_TO:
            _write_counts(axes, counts, shares)
        axes.set(xlabel="predicted class", ylabel="true class")
        bar = figure.colorbar(image, ax=axes, shrink=0.7)
        bar.set_label("share of the true class")
    save_with_pdf(figure, path)


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    if len(names) > _NAMED_UP_TO:
        return
    size = 8.5 if len(names) <= COUNTED_UP_TO else 6.5
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.tick_params(length=0)


def _write_counts(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for line, column in zip(*np.nonzero(counts), strict=True):
        axes.text(
            column,
            line,
            f"{counts[line, column]:,}",
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if shares[line, column] > _DARK else "black",
        )
