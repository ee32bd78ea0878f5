"""How the dice of single groups, such as patients, are spread: a dot each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from robustcli.reports.figures.canvas import look, save, styled

STEP = 0.0125  # of dice: dots closer than that are put on top of each other
CROWDED = 120  # dots: more are drawn smaller
SPREAD = 0.36  # of a line, above and below


@dataclass(frozen=True)
class Strip:
    """One model: its name, the dice of its groups, and their mean with its interval."""

    name: str
    values: NDArray[np.float64]
    mean: float
    low: float | None
    high: float | None


def draw_strips(strips: Sequence[Strip], group: str, path: Path) -> None:
    """Draws a line of dots per strip, and its mean with the interval below them.

    Args:
        strips: At least one.
        group: What a dot is, in the singular.
        path: The PNG to write.
    """
    with styled():
        figure = Figure(figsize=(8.6, 1.0 + 1.25 * len(strips)), layout="constrained")
        axes = figure.subplots()
        for line, strip in enumerate(strips):
            _strip(axes, strip, line)
        axes.set_yticks(range(len(strips)), [strip.name for strip in strips])
        axes.set(xlim=(-0.02, 1.02), ylim=(len(strips) - 0.45, -0.55))
        axes.set_xlabel(f"dice of a single {group} (dots); mean with 95 % interval (black)")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
    save(figure, path)


def _strip(axes: Axes, strip: Strip, line: int) -> None:
    style, places = look(line), heights(strip.values)
    crowded = len(places) > CROWDED
    axes.scatter(
        strip.values,
        line - 0.1 + places,
        s=9 if crowded else 20,
        marker=style.marker,
        color=style.colour,
        edgecolor="white",
        linewidth=0.1 if crowded else 0.4,
    )
    low = strip.mean if strip.low is None else strip.low
    high = strip.mean if strip.high is None else strip.high
    axes.errorbar(
        strip.mean,
        line + 0.38,
        xerr=[[max(0.0, strip.mean - low)], [max(0.0, high - strip.mean)]],
        fmt="|",
        markersize=9,
        color="black",
        elinewidth=1.6,
        capsize=3,
    )


def heights(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far from the middle of its line each dot is drawn, in [-SPREAD, SPREAD].

    Dots of about the same value are stacked from the middle outwards, alternately up and down.
    """
    places = np.rint(values / STEP).astype(int)
    ranks = np.zeros(len(values))
    for place in np.unique(places):
        mine = np.flatnonzero(places == place)
        order = np.arange(len(mine))
        ranks[mine] = np.where(order % 2, -1, 1) * ((order + 1) // 2)
    tallest = max(4.0, float(np.abs(ranks).max(initial=0)))
    scaled: NDArray[np.float64] = ranks * SPREAD / tallest
    return scaled
