"""Shared parts of all figures: colours, markers, hatches, labels, and writing to a file.

Figures are created as objects, without `pyplot`: no window system, no state between reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from robustcli.core.io import replacing
from robustcli.core.names import printable
from robustcli.reports.numbers import is_missing
from robustcli.reports.scoring import Measure

DPI = 150
GREY = "#666666"
MARKED_UP_TO = 25  # points per line; more markers would overlap
# Width in inches of a legend's key and of one letter of its text, at the font size below.
LEGEND_KEY = 0.7
LEGEND_LETTER = 0.085
LEGEND_LINE = 0.2  # height in inches
LEGEND_LINES = 4  # for which figures have space; a longer legend makes them higher

# M. Okabe, K. Ito, Color universal design (2008), without yellow, which is invisible on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = (
    *("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2))),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "+++", "ooo")
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "hatch.linewidth": 0.6,
    # Names are not parsed: a `$` does not start a formula.
    "text.parse_math": False,
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Look:
    """Style of one model in all figures.

    Colour, marker and hatch each suffice to distinguish models.
    """

    colour: str
    marker: str
    hatch: str


def look(index: int) -> Look:
    """The style of the model at position `index` of the run."""
    return Look(
        COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)], HATCHES[index % len(HATCHES)]
    )


def looks(models: Sequence[str]) -> list[tuple[str, Look]]:
    """The models with their styles."""
    return [(model, look(index)) for index, model in enumerate(models)]


def styled() -> AbstractContextManager[None]:
    """A context for creating and saving figures with fixed fonts, not the user's settings."""
    return matplotlib.rc_context(_RC)


def save_figure(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Writes `figure` atomically as PNG of `dpi` pixels per inch."""
    make_drawable(figure)
    with replacing(path) as temporary, styled():
        figure.savefig(temporary, format="png", dpi=dpi)


def make_drawable(figure: Figure) -> None:
    """Replaces letters that the font lacks: all figures need the same font on all machines.

    Control characters become escape sequences (see `printable`), other letters their code points,
    such as U+4E2D, as in the LaTeX tables: the font would draw all of them as the same box.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        shown = drawable(text.get_text())
        if shown != text.get_text():
            text.set_text(shown)


def drawable(text: str) -> str:
    """`text` with the letters that the font lacks replaced, see `make_drawable`."""
    known = _glyphs()
    return "".join(
        letter if letter == "\n" or ord(letter) in known else f"U+{ord(letter):04X}"
        for letter in printable(text)
    )


@cache
def _glyphs() -> frozenset[int]:
    """The code points of the letters of the font."""
    return frozenset(get_font(findfont(_RC["font.family"])).get_charmap())


def save_with_pdf(figure: Figure, path: Path) -> None:
    """Writes `figure` as PNG to `path` and as PDF next to it; equal figures give equal bytes.

    Letters are embedded as TrueType, which journals require.
    """
    save_figure(figure, path)
    with replacing(path.with_suffix(".pdf")) as temporary, styled():
        figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})


def legend_width(labels: Sequence[str]) -> float:
    """Width in inches of the widest entry of a legend."""
    lines = (line for label in labels for line in label.split("\n"))
    return LEGEND_KEY + LEGEND_LETTER * max(map(len, lines))


def legend(figure: Figure, axes: Axes) -> None:
    """Draws the legend of `axes` above the figure, in as many columns as fit."""
    legend_above(figure, *axes.get_legend_handles_labels())


def legend_above(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Draws a legend above the figure, whose height grows if the legend has many lines."""
    width = figure.get_figwidth()
    added = LEGEND_LINE * max(0, legend_lines(labels, width) - LEGEND_LINES)
    figure.set_figheight(figure.get_figheight() + added)
    columns = max(1, int(width / legend_width(labels)))
    figure.legend(
        handles, list(map(legend_label, labels)), loc="outside upper center", ncols=columns,
        frameon=False,
    )  # fmt: skip


def legend_lines(labels: Sequence[str], width: float) -> int:
    """Number of text lines of a legend of `width` inches."""
    columns = max(1, int(width / legend_width(labels)))
    lines = max(1 + label.count("\n") for label in labels)
    return lines * -(-len(labels) // columns)


def legend_label(name: str) -> str:
    """`name` as label of a line or bar; Matplotlib omits labels that start with `_` in legends."""
    return f"\N{HAIR SPACE}{name}" if name.startswith("_") else name


def measure_axis(axes: Axes, axis: str, measure: Measure) -> None:
    """Labels `axis` ("x" or "y") with `measure` and draws a light grid behind the data."""
    axes.grid(axis="x" if axis == "x" else "y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(**{f"{axis}label": measure.axis})


def light_grid(axes: Axes) -> None:
    """Draws a light grid behind the data of `axes` and removes the top and right frame lines."""
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def grid_shape(count: int, most_columns: int) -> tuple[int, int]:
    """Numbers of lines and columns of a grid of `count` panels."""
    columns = min(most_columns, count)
    return -(-count // columns), columns


def panel_grid(
    figure: Figure, count: int, shape: tuple[int, int], *, outer: bool = False, **shared: Any
) -> list[Axes]:
    """The axes of `count` panels, line by line, in a grid of `shape`; its other axes are hidden.

    Args:
        figure: Figure without axes.
        count: Number of panels.
        shape: See `grid_shape`.
        outer: Labels ticks only at the left edge, and below panels that have no panel below them.
        shared: `sharex` and `sharey` of Matplotlib.
    """
    grid = figure.subplots(*shape, squeeze=False, **shared)
    panels: list[Axes] = list(grid.flat[:count])
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    for number, axes in enumerate(panels if outer else ()):
        axes.label_outer()
        if number >= count - shape[1]:  # shared axes label only the last line of the grid
            axes.tick_params(labelbottom=True)
    return panels


class Estimate(NamedTuple):
    """A number to draw, and the ends of its interval, which are the number itself without one."""

    low: float
    value: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Estimate:
        """A number without an interval."""
        return cls(value, value, value)

    @classmethod
    def of(cls, numbers: Mapping[str, Any] | pd.Series, column: str) -> Estimate:
        """The number in `column`; the ends are in `<column>_low` and `<column>_high`."""
        value = float(numbers[column])
        ends = (numbers[f"{column}_{end}"] for end in ("low", "high"))
        low, high = (value if is_missing(end) else float(end) for end in ends)
        return cls(low, value, high)

    @property
    def ends(self) -> tuple[float, float]:
        """Lower and upper end of the interval."""
        return self.low, self.high


def interval_lengths(
    estimates: Sequence[Estimate], scale: float = 1
) -> tuple[list[float], list[float]]:
    """Lengths of the intervals below and above the numbers, times `scale`."""
    below = [max(0.0, scale * (value - low)) for low, value, _ in estimates]
    return below, [max(0.0, scale * (high - value)) for _, value, high in estimates]


def error_bars(rows: pd.DataFrame, measure: Measure) -> tuple[list[float], list[float]]:
    """Lengths of the 95 % intervals below and above the score, on the axis of `measure`."""
    value = rows[measure.column].to_numpy(dtype=float)
    low, high = (end.to_numpy(dtype=float) for end in measure.ends(rows))
    below, above = (measure.scale * np.clip(part, 0, None) for part in (value - low, high - value))
    # Lists: matplotlib fails on an array with a single column.
    return below.tolist(), above.tolist()


def wrapped(name: str, width: int = 13) -> str:
    """`name` on lines of about `width` characters, broken after `_`, `-` and spaces.

    Letters that the font lacks become code points (see `make_drawable`), with a break after each.
    """
    lines = [""]
    for piece in _pieces(name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.strip() for line in lines)


def _pieces(name: str) -> list[str]:
    drawn = [(letter, drawable(letter)) for letter in name]
    marked = "".join(f"{d}\0" if c in "_- " or d != c else d for c, d in drawn)
    return [piece for piece in marked.split("\0") if piece]


# Labels of points, so that none covers another, a point or the figure's edge. A separate search is
# used because adjustText 1.4 puts labels of these figures across intervals and, where points are
# crowded, across each other.


# Points (1/72 inch): tried distances of a label from its point, and the distance from which it gets
# a line.
REACHES = (7, 15, 25, 37, 50, 65, 82, 100)
LINE_FROM = 12
POINT = 4.5
# Directions in order: right, left, above, below, then between these.
_WAYS = [(1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8)]
_WAYS += [(0.4, 1), (-0.4, 1), (0.4, -1), (-0.4, -1), (1, 0.4), (1, -0.4), (-1, 0.4), (-1, -0.4)]
_STEPS = 12  # points of a line to a label that are checked for crossings


@dataclass(frozen=True)
class Label:
    """A text and its point in data coordinates."""

    text: str
    x: float
    y: float
    weight: str = "normal"


def place_labels(axes: Axes, labels: Sequence[Label], obstacles: Sequence[Bbox]) -> None:
    """Adds `labels` to `axes`, each at the nearest position where it covers nothing.

    If no such position exists, the one that covers least is used. A label that is not next to its
    point gets a thin line to it. The size of the figure and the limits of its axes must be final.

    Args:
        axes: Axes with their data drawn.
        labels: Labels in the order in which they are placed.
        obstacles: Boxes that should not be covered either, in pixels.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    FigureCanvasAgg(figure)  # measures text as the saved figure does
    make_drawable(figure)
    figure.draw_without_rendering()
    taken = [_around(axes, label) for label in labels] + list(obstacles)
    lines: list[Bbox] = []
    for number, label in enumerate(labels):
        point_box, other_boxes = taken[number], taken[:number] + taken[number + 1 :]
        box, line = _place(axes, label, point_box, [*other_boxes, *lines])
        taken.append(box)
        lines += line


def _around(axes: Axes, label: Label) -> Bbox:
    """The box around the marker of a point, in pixels."""
    x, y = axes.transData.transform((label.x, label.y))
    half = POINT * _dots(axes)
    return Bbox([[x - half, y - half], [x + half, y + half]])


def _place(
    axes: Axes, label: Label, point_box: Bbox, other_boxes: list[Bbox]
) -> tuple[Bbox, list[Bbox]]:
    """Draws one label; returns its box and, as small boxes, its line."""
    best: tuple[float, tuple[float, float]] | None = None
    annotation = _annotated(axes, label)
    blocked = np.array([box.extents for box in [*other_boxes, point_box]])
    at_point: dict[tuple[str, str], Bbox] = {}
    for reach in REACHES:
        for direction in _WAYS:
            offset = (reach * direction[0], reach * direction[1])
            box = _box(annotation, offset, at_point, _dots(axes))
            cost = _cost(axes, box, _line(point_box, box, reach, axes), blocked, len(other_boxes))
            if best is None or cost < best[0]:
                best = (cost, offset)
        if best is not None and best[0] == 0:
            break
    assert best is not None
    _move(annotation, best[1])
    box = annotation.get_window_extent()
    return box, [_dot(point) for point in _finish(axes, annotation, point_box, box, best[1])]


def _annotated(axes: Axes, label: Label) -> Annotation:
    return axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(0, 0),
        textcoords="offset points",
        fontsize=7.5,
        fontweight=label.weight,
    )


def _move(annotation: Annotation, offset: tuple[float, float]) -> None:
    """Moves the side of the text that faces the point to `offset`."""
    x, y = offset
    annotation.set_position(offset)
    annotation.set_horizontalalignment("left" if x > 0 else "right" if x < 0 else "center")
    annotation.set_verticalalignment("bottom" if y > abs(x) else "top" if -y > abs(x) else "center")


def _box(
    annotation: Annotation, offset: tuple[float, float], at_point: dict[tuple[str, str], Bbox],
    dots: float,
) -> Bbox:  # fmt: skip
    """The box of the text at `offset` in pixels; text is laid out once per alignment."""
    _move(annotation, offset)
    alignment = annotation.get_horizontalalignment(), annotation.get_verticalalignment()
    x, y = dots * offset[0], dots * offset[1]
    if alignment not in at_point:
        at_point[alignment] = annotation.get_window_extent().translated(-x, -y)
    return at_point[alignment].translated(x, y)


def _cost(
    axes: Axes,
    box: Bbox,
    line: list[tuple[float, float]],
    blocked: NDArray[np.float64],
    box_count: int,
) -> float:
    """Cost of a label at `box`: covered pixels; parts outside the axes weigh most."""
    wide = np.minimum(box.x1, blocked[:, 2]) - np.maximum(box.x0, blocked[:, 0])
    high = np.minimum(box.y1, blocked[:, 3]) - np.maximum(box.y0, blocked[:, 1])
    covered = float((np.clip(wide, 0, None) * np.clip(high, 0, None)).sum())
    inside = axes.bbox
    out = max(0.0, inside.x0 - box.x0) + max(0.0, box.x1 - inside.x1)
    out += max(0.0, inside.y0 - box.y0) + max(0.0, box.y1 - inside.y1)
    x, y = np.array(line).reshape(-1, 2).T  # (points,)
    left, bottom, right, top = (edge[:, None] for edge in blocked[:box_count].T)  # (boxes, 1)
    crossed = int(((left <= x) & (x <= right) & (bottom <= y) & (y <= top)).sum())
    return float(covered + 1000 * out + 20 * crossed)


def _line(point_box: Bbox, box: Bbox, reach: float, axes: Axes) -> list[tuple[float, float]]:
    """Points on the line from the point to its label; empty if they are next to each other."""
    if reach < LINE_FROM:
        return []
    start = ((point_box.x0 + point_box.x1) / 2, (point_box.y0 + point_box.y1) / 2)
    end = (min(max(start[0], box.x0), box.x1), min(max(start[1], box.y0), box.y1))
    skip = POINT * _dots(axes)
    length = max(float(np.hypot(end[0] - start[0], end[1] - start[1])), skip)
    parts = np.linspace(skip / length, 1, _STEPS)
    return [(start[0] + p * (end[0] - start[0]), start[1] + p * (end[1] - start[1])) for p in parts]


def _finish(
    axes: Axes, annotation: Annotation, point_box: Bbox, box: Bbox, offset: tuple[float, float]
) -> list[tuple[float, float]]:
    points = _line(point_box, box, max(abs(offset[0]), abs(offset[1])), axes)
    if points:
        (x0, y0), (x1, y1) = axes.transData.inverted().transform([points[0], points[-1]])
        axes.plot([x0, x1], [y0, y1], color="#999999", linewidth=0.5, zorder=1)
    return points


def _dot(point: tuple[float, float]) -> Bbox:
    x, y = point
    return Bbox([[x - 1, y - 1], [x + 1, y + 1]])


def _dots(axes: Axes) -> float:
    """Pixels per point (1/72 inch)."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return float(figure.dpi) / 72
