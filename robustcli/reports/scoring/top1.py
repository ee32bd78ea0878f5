"""Classifiers: top-1, every image counting as much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pandas as pd

from robustcli.evaluation.paired_classes import ClassDifference, class_difference
from robustcli.reports.measure import TOP1, Measure
from robustcli.reports.numbers import MISSING, decimal, is_missing, percent, percent_range
from robustcli.reports.scoring.scoring import Scoring
from robustcli.training.record import VALIDATIONS, Validation


class Top1Scoring(Scoring):
    """See the module."""

    measure: ClassVar[Measure] = TOP1
    second: ClassVar[str] = "top-5"
    validation: ClassVar[Validation] = VALIDATIONS["cls"]
    axis: ClassVar[str] = "top-1 (0 to 1)"
    equal_words: ClassVar[str] = "1 percentage point"
    equal_size: ClassVar[str] = "1 percentage point"
    columns: ClassVar[tuple[str, ...]] = (
        *("n", "correct", "top1", "top1_low", "top1_high", "top5"),
    )
    counts: ClassVar[tuple[str, ...]] = ("n", "correct")
    baseline_columns: ClassVar[tuple[str, ...]] = ("top1",)
    baseline: ClassVar[str] = "most frequent class"
    floor_words: ClassVar[str] = "Always the most frequent class"
    per_group: ClassVar[bool] = False
    unit: ClassVar[str] = " percentage points"
    few_words: ClassVar[str] = (
        "the 95 % interval of a top-1 is up to {width} wide: these numbers are a rough answer, and "
        "small differences between modes cannot be seen."
    )
    edge_words: ClassVar[str] = (
        "The interval is an approximation and McNemar's exact test is cautious, so close to the "
        "edge they can disagree"
    )
    score_note: ClassVar[str] = (
        "In brackets: 95 % Wilson intervals, of the differences paired ones (Newcombe's), in "
        "percentage points. p: McNemar's exact test. The most frequent class is what a network "
        "that always gives the same answer can reach on these images."
    )

    def shown(self, numbers: Mapping[str, Any] | pd.Series) -> str:
        """See `Scoring.shown`."""
        n, value = int(numbers["n"]), f"{percent(numbers['top1'], int(numbers['n']))} %"
        low, high = numbers.get("top1_low"), numbers.get("top1_high")
        return value if is_missing(low) else f"{value} ({percent_range(low, high, n)})"

    def second_shown(self, numbers: Mapping[str, Any] | pd.Series) -> str:
        """See `Scoring.second_shown`."""
        value = numbers.get("top5")
        return MISSING if is_missing(value) else f"{percent(value, int(numbers['n']))} %"

    def apart(self, value: float | None) -> str:
        """See `Scoring.apart`: in percentage points."""
        if value is None or is_missing(value):
            return MISSING
        shown = f"{100 * value:+.1f}"
        return "0.0" if shown in ("+0.0", "-0.0") else shown

    def width(self, value: float) -> str:
        """See `Scoring.width`."""
        return f"{decimal(100 * value)} percentage points"

    def difference(
        self, reference: pd.DataFrame, rows: pd.DataFrame, seed: int
    ) -> ClassDifference | None:
        """See `Scoring.difference`."""
        return class_difference(reference, rows)

    def tested(self, group: str) -> tuple[str, str]:
        """See `Scoring.tested`."""
        return "paired 95 % interval", "McNemar's exact test"


def most_frequent(rows: pd.DataFrame) -> dict[str, float]:
    """What always giving the same answer reaches on the images of `rows`, at best."""
    counts = rows["target"].value_counts()
    return {"n": len(rows), "top1": float(counts.iloc[0]) / len(rows)}
