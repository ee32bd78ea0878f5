"""Single cases: the image, the true and the predicted outline, and where both differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from robustcli.reports.figures.canvas import save, styled

# Inches: a picture with its gap, a line of text above it, the heading and the legend.
SIDE, GAP, LINE, HEAD, FOOT = 2.1, 0.1, 0.27, 0.3, 0.34
TALLEST = 1.5
PHOTO_DPI = 110
TITLES = ("image", "true outline", "predicted outline", "differences")
# Apart for every kind of colour vision and in grey: white, light blue, dark orange on near black.
FOUND, MISSED, ALARM = "#FFFFFF", "#86CBF2", "#A83C00"
DIMMED = 0.15
TRUE, CALLED = "#56B4E9", "#E69F00"


@dataclass(frozen=True)
class Case:
    """One image, uint8 (H, W, 3), with its true and its predicted mask, bool (H, W)."""

    title: str
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    prediction: NDArray[np.bool_]


def draw_panels(cases: Sequence[Case], path: Path) -> None:
    """Draws four pictures per case, a case a line.

    Args:
        cases: At least one.
        path: The PNG to write.
    """
    tall = [(SIDE - GAP) * min(TALLEST, _aspect(case)) for case in cases]
    width, height = SIDE * len(TITLES), HEAD + FOOT + sum(tall) + (LINE + GAP) * len(cases)
    with styled():
        figure = Figure(figsize=(width, height))
        for column, title in enumerate(TITLES):
            x = (column + 0.5) * SIDE / width
            figure.text(x, 1 - 0.08 / height, title, ha="center", va="top", fontweight="bold")
        top = height - HEAD
        for case, high in zip(cases, tall, strict=True):
            text = (GAP / 2 / width, (top - 0.05) / height)
            figure.text(*text, case.title, ha="left", va="top", fontsize=8)
            top -= LINE
            for column in range(len(TITLES)):
                left = (column * SIDE + GAP / 2) / width
                size = ((SIDE - GAP) / width, high / height)
                _picture(figure.add_axes((left, (top - high) / height, *size)), case, column)
            top -= high + GAP
        _legend(figure)
    save(figure, path, PHOTO_DPI)


def _aspect(case: Case) -> float:
    return case.image.shape[0] / case.image.shape[1]


def _picture(axes: Axes, case: Case, column: int) -> None:
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(False)
    shown = differences(case) if column == len(TITLES) - 1 else case.image
    axes.imshow(shown)
    if column == 1:
        _outline(axes, case.truth, TRUE, "solid")
    if column == 2:
        _outline(axes, case.prediction, CALLED, "dashed")


def differences(case: Case) -> NDArray[np.uint8]:
    """The dimmed image, coloured where foreground was found, missed or called in vain."""
    grey = case.image.mean(axis=2, keepdims=True) * DIMMED
    shown = np.repeat(grey, 3, axis=2)
    for colour, where in (
        (FOUND, case.truth & case.prediction),
        (MISSED, case.truth & ~case.prediction),
        (ALARM, ~case.truth & case.prediction),
    ):
        shown[where] = 255 * np.array(to_rgb(colour))
    pixels: NDArray[np.uint8] = np.rint(shown).astype(np.uint8)
    return pixels


def _outline(axes: Axes, mask: NDArray[np.bool_], colour: str, dashes: str) -> None:
    """The border of `mask`, closed also where it runs along the picture's edge."""
    if not mask.any():
        return
    height, width = mask.shape
    padded = np.pad(mask.astype(float), 1)
    limits = axes.get_xlim(), axes.get_ylim()
    lines = axes.contour(
        np.arange(-1, width + 1),
        np.arange(-1, height + 1),
        padded,
        levels=[0.5],
        colors=[colour],
        linewidths=1.4,
        linestyles=[dashes],
    )
    lines.set_path_effects([withStroke(linewidth=2.6, foreground="black")])
    axes.set(xlim=limits[0], ylim=limits[1])


def _legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=TRUE, linewidth=2, label="true outline"),
        Line2D([], [], color=CALLED, linewidth=2, linestyle="--", label="predicted outline"),
        Patch(facecolor=FOUND, label="found", edgecolor="#444444", linewidth=0.6),
        Patch(facecolor=MISSED, label="missed", edgecolor="#444444", linewidth=0.6),
        Patch(facecolor=ALARM, label="false alarm", edgecolor="#444444", linewidth=0.6),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False)
