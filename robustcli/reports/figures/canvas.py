"""Shared parts of all figures: colours, markers, hatches, labels, and writing to a file.

Figures are created as objects, without `pyplot`: no window system, no state between reports.
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
from robustcli.reports.scoring import Measure

DPI = 150
GREY = "#666666"
MARKED_UP_TO = 25  # points per line; more markers would overlap
# Width in inches of a legend's key and of one letter of its text, at the font size below.
LEGEND_KEY = 0.7
LEGEND_LETTER = 0.085

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
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_text() != printable(text.get_text()):
            text.set_text(printable(text.get_text()))  # fonts have no glyphs for control characters
    with replacing(path) as temporary, styled():
        figure.savefig(temporary, format="png", dpi=dpi)


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
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, int(figure.get_figwidth() / legend_width(labels)))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


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


def error_bars(rows: pd.DataFrame, measure: Measure) -> tuple[list[float], list[float]]:
    """Lengths of the 95 % intervals below and above the score, on the axis of `measure`."""
    value = rows[measure.column].to_numpy(dtype=float)
    low, high = (end.to_numpy(dtype=float) for end in measure.ends(rows))
    below, above = (measure.scale * np.clip(part, 0, None) for part in (value - low, high - value))
    # Lists: matplotlib fails on an array with a single column.
    return below.tolist(), above.tolist()


def wrapped(name: str, width: int = 13) -> str:
    """`name` on lines of about `width` characters, broken after `_`, `-` and spaces."""
    lines = [""]
    for piece in _pieces(name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.strip() for line in lines)


def _pieces(name: str) -> list[str]:
    marked = "".join(f"{c}\0" if c in "_- " else c for c in name)
    return [piece for piece in marked.split("\0") if piece]
