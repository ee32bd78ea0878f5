"""Which transforms a set of models stands best and worst."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from robustcli.reports.measure import TOP1, Measure

SHOWN = 4


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


def extremes(table: pd.DataFrame, most: int = SHOWN, *, by: Measure = TOP1) -> Extremes:
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
