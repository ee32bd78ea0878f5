"""The score of a comparison over transforms: top-1 of classifiers, dice of segmenters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from robustcli.reports.numbers import (
    EN_DASH,
    MISSING,
    fraction,
    fraction_range,
    percent,
    percent_range,
)


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

    def signed(self, value: float, n: int) -> str:
        """A difference of numbers of `n` images as text, with its sign."""
        text = self.show(value, n)
        return f"+{text}" if value > 0 and text.strip("0.") else text

    def value(self, row: Mapping[str, Any] | pd.Series) -> str:
        """The number of `row` as text."""
        return self.show(row[self.column], int(row["n"]))

    def value_range(self, row: Mapping[str, Any] | pd.Series, to: str = EN_DASH) -> str:
        """The interval of `row` as text."""
        low, high = row[f"{self.column}_low"], row[f"{self.column}_high"]
        return self.show_range(low, high, int(row["n"]), to)

    def with_range(self, row: Mapping[str, Any] | pd.Series) -> str:
        """The number of `row` with its interval, where it has one."""
        interval = self.value_range(row)
        return self.value(row) if interval == MISSING else f"{self.value(row)} ({interval})"

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

IOU = replace(DICE, column="iou", name="IoU")
# Of data that have a tolerance, and only of these.
RELAXED = tuple(
    replace(DICE, column=f"relaxed_{name}", name=f"relaxed {name}")
    for name in ("precision", "recall")
)


def relaxed_words(numbers: Mapping[str, Any] | pd.Series) -> str:
    """Relaxed precision and recall of a row of segmenters, as a part of a sentence."""
    return " and ".join(measure.with_range(numbers) for measure in RELAXED)


# Which transforms a set of models stands best and worst.


EXTREMES_SHOWN = 4


@dataclass(frozen=True)
class Extremes:
    """The cells (transform, severity) at both ends, each list starting with the extreme one."""

    best: list[tuple[str, int]]
    worst: list[tuple[str, int]]


def representatives(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that stand for whole transforms, `identity` left out.

    A transform is represented by its full range (severity 0) where it was measured, else by its
    highest severity, so that transforms are compared and not one transform's severities.

    Args:
        table: `metrics.table` of a run.
    """
    rows = table[table["transform"] != "identity"]
    lowest = rows.groupby("transform")["severity"].transform("min")
    highest = rows.groupby("transform")["severity"].transform("max")
    return rows[rows["severity"] == highest.where(lowest > 0, 0)]


def extremes(table: pd.DataFrame, most: int = EXTREMES_SHOWN, *, by: Measure = TOP1) -> Extremes:
    """The best and worst transforms by a measure, averaged over the models.

    No transform is in both lists; with an odd few of them the best get one more. Ties are in the
    order of the run.

    Args:
        table: `metrics.table` of a run.
        most: Length of each list at most.
        by: The measure.
    """
    rows = representatives(table)
    means = rows.groupby(["transform", "severity"], sort=False)[by.column].agg(["mean", "count"])
    complete = means.loc[means["count"] == table["model"].nunique(), "mean"]
    order = complete.sort_values(ascending=False, kind="stable")
    ranked = [(str(t), int(s)) for t, s in order.index]
    best = ranked[: min(most, (len(ranked) + 1) // 2)]
    worst = ranked[len(best) :][-most:]
    return Extremes(best, worst[::-1])
