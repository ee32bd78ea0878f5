"""What a comparison over transforms is about: top-1 of classifiers, dice of segmenters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from robustcli.reports.numbers import fraction, fraction_range, percent, percent_range


@dataclass(frozen=True)
class Measure:
    """One number of `metrics.table` as tables, pictures and sentences show it.

    Args:
        column: Its column; its interval is in the columns `<column>_low` and `<column>_high`.
        paired: The column that counts what a drop is taken over.
        name: In a sentence.
        unit: What a drop is in.
        axis: Along an axis.
        scale: What one is drawn as: 100 for percent, 1 for a fraction.
        interval: How its interval was made, in the plural.
        clean: The number on untouched images.
        show: A value of `n` images as text.
        show_range: An interval of `n` images as text, its ends joined by the last argument.
    """

    column: str
    paired: str
    name: str
    unit: str
    axis: str
    scale: float
    interval: str
    clean: str
    show: Callable[[float | None, int], str]
    show_range: Callable[[float | None, float | None, int, str], str]

    @property
    def title(self) -> str:
        """The name at the start of a sentence."""
        return self.name[0].upper() + self.name[1:]

    def ends(self, rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
        """The ends of the intervals; the number itself where there is no interval."""
        low, high = rows[f"{self.column}_low"], rows[f"{self.column}_high"]
        return low.fillna(rows[self.column]), high.fillna(rows[self.column])


TOP1 = Measure(
    "top1",
    "paired_n",
    "top-1",
    "percentage points",
    "top-1 accuracy (%)",
    100,
    "95 % Wilson intervals",
    "clean accuracy",
    percent,
    percent_range,
)
DICE = Measure(
    "dice",
    "paired_groups",
    "dice",
    "dice",
    "dice (0 to 1)",
    1,
    "95 % bootstrap intervals",
    "clean dice",
    lambda value, _: fraction(value),
    lambda low, high, _, to: fraction_range(low, high, to),
)
