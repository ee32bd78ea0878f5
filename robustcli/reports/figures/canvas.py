"""What all figures share: colours, markers, hatches, labels, and writing to a file.

Figures are made as objects, without `pyplot`: no window system, no state between reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from robustcli.core.io import replacing
from robustcli.core.names import printable
from robustcli.reports.measure import Measure

DPI = 150
GREY = "#666666"
MARKED_UP_TO = 25  # points of a line: more markers than that run together
# Inches that a legend's key and one letter of its text take at the font size below.
LEGEND_KEY = 0.7
LEGEND_LETTER = 0.085

# M. Okabe, K. Ito, Color universal design (2008), without the yellow that is lost on white.
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
    # Names are shown as they are: a `$` in one is no formula.
    "text.parse_math": False,
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Look:
    """How one model is drawn everywhere; colour, marker and hatch each tell models apart alone."""

    colour: str
    marker: str
    hatch: str


def look(index: int) -> Look:
    """The look of the model at position `index` of the run."""
    return Look(
        COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)], HATCHES[index % len(HATCHES)]
    )


def looks(models: Sequence[str]) -> list[tuple[str, Look]]:
    """The models with their looks."""
    return [(model, look(index)) for index, model in enumerate(models)]


def styled() -> AbstractContextManager[None]:
    """A context that makes and saves figures with our fonts instead of the user's."""
    return matplotlib.rc_context(_RC)


def save_figure(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Writes `figure` as PNG of `dpi` pixels per inch, durably."""
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_text() != printable(text.get_text()):
            text.set_text(printable(text.get_text()))  # a font has no control characters
    with replacing(path) as beside, styled():
        figure.savefig(beside, format="png", dpi=dpi)


def save_with_pdf(figure: Figure, path: Path) -> None:
    """Writes `figure` as PNG to `path`, and beside it as PDF: the same figure gives the same bytes.

    Its letters are embedded as TrueType, which journals ask for.
    """
    save_figure(figure, path)
    with replacing(path.with_suffix(".pdf")) as beside, styled():
        figure.savefig(beside, format="pdf", metadata={"CreationDate": None})


def legend_width(labels: Sequence[str]) -> float:
    """The inches that the widest entry of a legend takes."""
    lines = (line for label in labels for line in label.split("\n"))
    return LEGEND_KEY + LEGEND_LETTER * max(map(len, lines))


def legend(figure: Figure, axes: Axes) -> None:
    """Puts the legend of `axes` above the whole figure, in as many columns as its names allow."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, int(figure.get_figwidth() / legend_width(labels)))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


def measure_axis(axes: Axes, axis: str, measure: Measure) -> None:
    """Makes `axis` ("x" or "y") the axis of `measure` with a light grid behind the data."""
    axes.grid(axis="x" if axis == "x" else "y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(**{f"{axis}label": measure.axis})


def light_grid(axes: Axes) -> None:
    """Draws a light grid behind the data of `axes`, which get no frame above and on the right."""
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def error_bars(rows: pd.DataFrame, measure: Measure) -> tuple[list[float], list[float]]:
    """The lengths of the 95 % intervals below and above the number, on the axis of `measure`."""
    value = rows[measure.column].to_numpy(dtype=float)
    low, high = (end.to_numpy(dtype=float) for end in measure.ends(rows))
    below, above = (measure.scale * np.clip(part, 0, None) for part in (value - low, high - value))
    # Lists: matplotlib trips over an array with a single column.
    return below.tolist(), above.tolist()


def wrapped(name: str, width: int = 13) -> str:
    """`name` on lines of about `width` characters, broken after `_`, `-` and blanks."""
    lines = [""]
    for piece in _pieces(name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.strip() for line in lines)


def _pieces(name: str) -> list[str]:
    marked = "".join(f"{c}\0" if c in "_- " else c for c in name)
    return [piece for piece in marked.split("\0") if piece]
