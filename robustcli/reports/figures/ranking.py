"""The ranking of models as a figure: how probable each rank is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from robustcli.reports.figures.canvas import (
    legend,
    save_figure,
    styled,
    wrapped,
)

SMALLEST_LABEL = 0.08  # of a bar: a smaller part has no room for its number


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
    save_figure(figure, path)
