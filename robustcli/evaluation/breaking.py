"""Breaking points: the severity from which on a model keeps less than half its accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

KEPT = 0.5


@dataclass(frozen=True)
class BreakingPoint:
    """Where one model breaks under one transform.

    Args:
        model: Its name in the run.
        transform: The transform's name.
        severity: The lowest measured severity at which retention is below KEPT; None: at none.
        strongest: The highest severity that was measured.
    """

    model: str
    transform: str
    severity: int | None
    strongest: int


def breaking_points(table: pd.DataFrame) -> list[BreakingPoint]:
    """One point per model and transform with at least two severities above 0, in table order.

    Severity 0 mixes all strengths of a transform, so it is no point on the scale.

    Args:
        table: `metrics.table` of a run.
    """
    graded = table[(table["severity"] > 0) & table["retention"].notna()]
    return [
        _point(str(model), str(transform), cells)
        for (model, transform), cells in graded.groupby(["model", "transform"], sort=False)
        if len(cells) > 1
    ]


def _point(model: str, transform: str, cells: pd.DataFrame) -> BreakingPoint:
    broken = cells.loc[cells["retention"] < KEPT, "severity"]
    lowest = None if broken.empty else int(broken.min())
    return BreakingPoint(model, transform, lowest, int(cells["severity"].max()))
