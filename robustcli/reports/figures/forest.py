"""Differences between two models with their intervals, and how sure a ranking is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from robustcli.metrics.verdicts import Outcome
from robustcli.reports.figures.canvas import (
    COLOURS,
    GREY,
    legend,
    light_grid,
    save,
    styled,
    wrapped,
)

SMALLEST_LABEL = 0.08  # of a bar: a smaller part has no room for its number


@dataclass(frozen=True)
class ForestLine:
    """A difference on the axis, with the ends of its interval (the value, where it has none)."""

    label: str
    value: float
    low: float
    high: float
    outcome: Outcome


def draw_forest(lines: Sequence[ForestLine], pair: tuple[str, str], unit: str, path: Path) -> None:
    """Draws a point with its interval per line, the largest difference on top.

    Args:
        lines: At least one.
        pair: The names of both models; a difference is that of the first minus the second.
        unit: What differences are in.
        path: The PNG to write.
    """
    ordered = sorted(lines, key=lambda line: line.value)
    looks: dict[Outcome, tuple[str, str, str, str]] = {
        "first ahead": (f"{pair[0]} ahead", COLOURS[0], "o", COLOURS[0]),
        "second ahead": (f"{pair[1]} ahead", COLOURS[1], "s", COLOURS[1]),
        "no difference shown": ("no difference shown", GREY, "D", "white"),
    }
    with styled():
        figure = Figure(figsize=(8.6, 1.5 + 0.24 * len(ordered)), layout="constrained")
        axes = figure.subplots()
        for outcome, (name, colour, marker, face) in looks.items():
            places = [n for n, line in enumerate(ordered) if line.outcome == outcome]
            if not places:
                continue
            shown = [ordered[n] for n in places]
            axes.errorbar(
                [line.value for line in shown],
                places,
                xerr=(
                    [max(0.0, line.value - line.low) for line in shown],
                    [max(0.0, line.high - line.value) for line in shown],
                ),
                fmt=marker,
                color=colour,
                markerfacecolor=face,
                markersize=5.5,
                elinewidth=1.2,
                capsize=2.5,
                label=name,
                zorder=3,
            )
        axes.axvline(0, color="black", linewidth=0.9, zorder=2)
        axes.set_yticks(range(len(ordered)), [line.label for line in ordered])
        axes.set_ylim(-0.7, len(ordered) - 0.3)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"{pair[0]} minus {pair[1]} ({unit}), paired 95 % intervals")
        light_grid(axes)
        legend(figure, axes)
    save(figure, path)


def draw_ranks(models: Sequence[str], probabilities: Sequence[Sequence[float]], path: Path) -> None:
    """Draws a bar per model, split by the probability of each rank.

    Args:
        models: At least one, the best first.
        probabilities: Of each, the probability of the first rank, the second, ...
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
    save(figure, path)
