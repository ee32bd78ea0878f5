"""The score of a comparison over transforms: top-1 for classifiers, dice for segmenters."""

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
    """A column of `cell_table.table`, with its name and format in tables, figures and sentences.

    Args:
        column: Name of the column; its interval is in the columns `<column>_low` and
            `<column>_high`.
        paired: Column with the number of units over which a drop is computed.
        name: Name in a sentence.
        unit: Unit of a drop.
        axis: Label of an axis.
        scale: Factor from [0, 1] to the axis: 100 for percent, 1 for a fraction.
        interval: Kind of its interval, in the plural.
        clean: Name of the score on clean images.
        show: Formats a value of `n` images as text.
        show_range: Formats an interval of `n` images as text; the last argument joins its ends.
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
        """A difference of scores of `n` images as text, with its sign."""
        text = self.show(value, n)
        return f"+{text}" if value > 0 and text.strip("0.") else text

    def value(self, row: Mapping[str, Any] | pd.Series) -> str:
        """The score of `row` as text."""
        return self.show(row[self.column], int(row["n"]))

    def value_range(self, row: Mapping[str, Any] | pd.Series, to: str = EN_DASH) -> str:
        """The interval of `row` as text."""
        low, high = row[f"{self.column}_low"], row[f"{self.column}_high"]
        return self.show_range(low, high, int(row["n"]), to)

    def with_range(self, row: Mapping[str, Any] | pd.Series) -> str:
        """The score of `row` with its interval, if it has one."""
        interval = self.value_range(row)
        return self.value(row) if interval == MISSING else f"{self.value(row)} ({interval})"

    def ends(self, rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
        """The ends of the intervals; the score itself without an interval."""
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
# Only for data that have a tolerance.
RELAXED = tuple(
    replace(DICE, column=f"relaxed_{name}", name=f"relaxed {name}")
    for name in ("precision", "recall")
)


def relaxed_words(numbers: Mapping[str, Any] | pd.Series) -> str:
    """Relaxed precision and recall of a row of segmenters, as a part of a sentence."""
    return " and ".join(measure.with_range(numbers) for measure in RELAXED)


# The transforms with the best and worst scores of a set of models.


EXTREMES_SHOWN = 4


@dataclass(frozen=True)
class Extremes:
    """The best and worst cells (transform, severity), each list starting with the extreme one."""

    best: list[tuple[str, int]]
    worst: list[tuple[str, int]]


def representatives(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that represent each transform, without `identity`.

    A transform is represented by its full range (severity 0) if it was measured, else by its
    highest severity, so that transforms are compared and not the severities of one transform.

    Args:
        table: `cell_table.table` of a run.
    """
    rows = table[table["transform"] != "identity"]
    lowest = rows.groupby("transform")["severity"].transform("min")
    highest = rows.groupby("transform")["severity"].transform("max")
    return rows[rows["severity"] == highest.where(lowest > 0, 0)]


def extremes(table: pd.DataFrame, most: int = EXTREMES_SHOWN, *, by: Measure = TOP1) -> Extremes:
    """The best and worst transforms by a measure, averaged over the models.

    No transform is in both lists; if their number is odd and small, the best list has one more.
    Ties are in the order of the run.

    Args:
        table: `cell_table.table` of a run.
        most: Largest length of each list.
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
