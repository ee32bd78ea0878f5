"""How a training went, epoch by epoch: losses, and dice and IoU on the validation images."""

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
from matplotlib.ticker import MaxNLocator

from robustcli.reports.figures.canvas import COLOURS, GREY, legend, save, styled, wrapped

COLUMNS = 4
MARKED_UP_TO = 25  # epochs: more markers than that run together
Quantity = Literal["loss", "dice", "top1"]
# Column of `metrics.csv`, name, colour, dashes, marker: each of the last three tells lines apart.
_LINES: dict[Quantity, tuple[tuple[str, str, str, str, str], ...]] = {
    "loss": (
        ("train_loss", "training loss", COLOURS[1], "-", "s"),
        ("val_loss", "validation loss", COLOURS[0], "--", "o"),
    ),
    "dice": (
        ("val_dice", "validation dice", COLOURS[0], "-", "o"),
        ("val_iou", "validation IoU", COLOURS[2], "--", "^"),
    ),
    "top1": (("val_top1", "validation top-1", COLOURS[0], "-", "o"),),
}


@dataclass(frozen=True)
class Course:
    """A training: its name, its lines of `metrics.csv` (at least one) and the chosen epoch."""

    name: str
    metrics: pd.DataFrame
    chosen: int | None


def draw_curves(course: Course, path: Path, score: Quantity = "dice") -> None:
    """Draws the losses on the left, the score on the right.

    Args:
        course: What is drawn.
        path: The PNG to write.
        score: What is drawn on the right.
    """
    quantities: tuple[Quantity, Quantity] = ("loss", score)
    with styled():
        figure = Figure(figsize=(8.6, 3.7), layout=ConstrainedLayoutEngine(wspace=0.06))
        for axes, quantity in zip(figure.subplots(1, 2), quantities, strict=True):
            _panel(axes, course, quantity)
            axes.set(xlabel="epoch", ylabel=_AXIS[quantity])
            axes.legend(frameon=False, fontsize=8)
    save(figure, path)


_AXIS: dict[Quantity, str] = {
    "loss": "loss",
    "dice": "dice, IoU (0 to 1)",
    "top1": "top-1 (0 to 1)",
}


def draw_course_grid(courses: Sequence[Course], quantity: Quantity, path: Path) -> None:
    """Draws `quantity` of several trainings, a small panel each.

    Args:
        courses: At least one.
        quantity: The losses, or dice and IoU.
        path: The PNG to write.
    """
    columns = min(COLUMNS, len(courses))
    lines = -(-len(courses) // columns)
    with styled():
        figure = Figure(figsize=(max(5.6, 2.2 * columns), 1.0 + 1.8 * lines), layout="constrained")
        # Losses of different kinds share no scale.
        grid = figure.subplots(lines, columns, sharey=quantity != "loss", squeeze=False)
        for axes, course in zip(grid.flat, courses, strict=False):
            _panel(axes, course, quantity)
            axes.set_title(wrapped(course.name, 26), fontsize=8.5)
        for axes in grid.flat[len(courses) :]:
            axes.set_visible(False)
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel(_AXIS[quantity], fontsize=9)
        legend(figure, grid[0, 0])
    save(figure, path)


def _panel(axes: Axes, course: Course, quantity: Quantity) -> None:
    epochs = course.metrics["epoch"].to_numpy()
    for column, name, colour, dashes, marker in _LINES[quantity]:
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
    _dress(axes, course.metrics, quantity)


def _dress(axes: Axes, metrics: pd.DataFrame, quantity: Quantity) -> None:
    axes.set_xlim(metrics["epoch"].min() - 0.5, metrics["epoch"].max() + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if quantity != "loss":
        axes.set_ylim(0, 1)
    else:
        values = metrics[[line[0] for line in _LINES[quantity]]].to_numpy(dtype=float)
        axes.set_ylim(min(0.0, float(np.nanmin(values, initial=0))), None)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
