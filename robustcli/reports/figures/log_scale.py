"""A logarithmic axis with a place for 0, which has no logarithm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

MOST_TICKS = 8
_NOTHING = (1e-8, 1.0)  # the axis where nothing is above 0


@dataclass(frozen=True)
class LogScale:
    """The axis from `floor` to `top`, both above 0; with `zeros`, 0 is drawn at `floor`."""

    floor: float
    top: float
    zeros: bool

    def place(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where `values` are drawn; NaN stays so."""
        return np.where(values <= 0, self.floor, values)

    def ticks(self) -> dict[float, str]:
        """Powers of ten, few enough to be read, and 0 where something is drawn there."""
        first = round(np.log10(self.floor)) + self.zeros
        last = int(np.floor(np.log10(self.top)))
        step = max(1, -(-(last - first + 1) // MOST_TICKS))
        told = {
            10.0**power: f"1e{power}" if power else "1" for power in range(first, last + 1, step)
        }
        return {self.floor: "0", **told} if self.zeros else told

    def apply(self, axes: Axes) -> None:
        """Makes the y axis of `axes` this one."""
        told = self.ticks()
        axes.set_yscale("log")
        axes.set_ylim(self.floor * (0.6 if self.zeros else 0.9), self.top)
        axes.yaxis.set_major_locator(FixedLocator(list(told)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: told.get(value, "")))
        axes.yaxis.set_minor_locator(NullLocator())


def log_scale(values: NDArray[np.float64], marks: Sequence[float] = ()) -> LogScale:
    """The axis on which `values` (from 0, or NaN) and `marks` are to be seen.

    The floor is a power of ten; with zeros it is a decade below everything else.
    """
    ends = [*values[values > 0], *(mark for mark in marks if mark > 0)]
    low, high = (min(ends), max(ends)) if ends else _NOTHING
    zeros = bool((values == 0).any())
    decade = int(np.floor(np.log10(low))) - zeros
    return LogScale(10.0**decade, float(high) * 2, zeros)
