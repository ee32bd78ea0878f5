"""The scores of each task in reports: columns, names and formats, and how they are compared.

Other modules of reports need not distinguish the tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import pandas as pd

from robustcli.metrics.intervals import Bootstrap
from robustcli.metrics.paired import PairedDifference, class_difference, mask_difference
from robustcli.reports.numbers import (
    EN_DASH,
    MISSING,
    decimal,
    fraction,
    fraction_range,
    is_missing,
    percent,
    percent_range,
    signed,
    with_range,
)
from robustcli.tasks.record import DatasetRecord
from robustcli.training.record import VALIDATIONS, Validation


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

    @property
    def suffix(self) -> str:
        """What follows a score in a sentence: the percent sign; empty for fractions."""
        return " %" if self.scale == 100 else ""

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


_SAMPLES_TRIED = 100  # first images that are searched for one with foreground


class Scoring(ABC):
    """The scores of one task: their columns, names and formats, and how they are compared.

    `measure` is the score, `second` the name of the second score next to it, empty without one,
    `validation` what is logged for the validation images. `equal` is the difference below which two
    scores count as equal; `equal_words` and `equal_size` are its descriptions. `columns` are the
    columns of an evaluation's table that results contain. `baseline` is the name of the baseline
    without training, `unit` follows a difference in a sentence, `score_note` describes how
    intervals and p-values are computed, `edge_words` why the interval and the p-value of a
    difference can disagree.
    """

    measure: ClassVar[Measure]
    measures: ClassVar[tuple[Measure, ...]]
    second: ClassVar[str]
    panel: ClassVar[Literal["dice", "top1"]]
    validated: ClassVar[str]
    validation: ClassVar[Validation]
    axis: ClassVar[str]
    equal: ClassVar[float] = 0.01
    equal_words: ClassVar[str]
    equal_size: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    counts: ClassVar[tuple[str, ...]]
    baseline_columns: ClassVar[tuple[str, ...]]
    baseline: ClassVar[str]
    floor_words: ClassVar[str]
    per_group: ClassVar[bool]
    unit: ClassVar[str]
    few_words: ClassVar[str]
    edge_words: ClassVar[str]
    score_note: ClassVar[str]

    @abstractmethod
    def shown(self, numbers: Mapping[str, Any] | pd.Series) -> str:
        """The score with its interval, as text."""

    def shown_in(self, row: pd.Series, n: int) -> str:
        """The score in a row of a sweep, measured on `n` held-out images, as text."""
        return self.shown({"n": n, **{str(name): value for name, value in row.items()}})

    @abstractmethod
    def second_shown(self, numbers: Mapping[str, Any] | pd.Series) -> str:
        """The second score, as text."""

    @property
    def heads(self) -> tuple[str, ...]:
        """The headers of `cells`."""
        return (self.measure.name, *([self.second] if self.second else []))

    def cells(self, numbers: Mapping[str, Any] | pd.Series | None) -> tuple[str, ...]:
        """The score with its interval, and the second score, as text; dashes without numbers."""
        if numbers is None:
            return (MISSING,) * len(self.heads)
        return (self.shown(numbers), self.second_shown(numbers))[: len(self.heads)]

    @abstractmethod
    def gap_shown(self, value: float | None) -> str:
        """A difference of scores with its sign, as text."""

    def gap_range(self, low: float, high: float) -> str:
        """The interval of a difference of scores, as text."""
        return f"{self.gap_shown(low)} to {self.gap_shown(high)}"

    @abstractmethod
    def width(self, value: float) -> str:
        """The width of an interval, as text."""

    @abstractmethod
    def difference(
        self, reference: pd.DataFrame, rows: pd.DataFrame, seed: int
    ) -> PairedDifference | None:
        """The score of one model's rows minus that of another's; None without common images."""

    @abstractmethod
    def baseline_numbers(
        self, test_rows: pd.DataFrame | None, baseline: pd.Series | None
    ) -> Mapping[str, Any] | pd.Series | None:
        """The scores of the baseline without training; None before the evaluation.

        Args:
            test_rows: Rows of the trained network on the held-out images.
            baseline: Scores of Otsu's threshold on the same images; None for classifiers.
        """

    @staticmethod
    def likely_samples(rows: pd.DataFrame) -> pd.DataFrame:
        """`rows` of clean images in the order in which they are used as sample image of a run."""
        return rows

    @abstractmethod
    def tested(self, group: str) -> tuple[str, str]:
        """The names of the paired interval and of the test, if a group of images is a `group`."""


class DiceScoring(Scoring):
    """Segmenters: dice, with pixels pooled within groups."""

    measure = DICE
    measures = (DICE, IOU)
    panel = "dice"
    validated = "dice and IoU"
    second = "IoU"
    validation = VALIDATIONS["seg"]
    axis = "dice (0 to 1)"
    equal_words = "0.01 of dice"
    equal_size = "0.01"
    columns = (
        *("n", "groups", "dice", "dice_low", "dice_high", "iou", "iou_low", "iou_high"),
        *("dice_image", "dice_foreground", "precision", "recall"),
        *("relaxed_precision", "relaxed_precision_low", "relaxed_precision_high"),
        *("relaxed_recall", "relaxed_recall_low", "relaxed_recall_high"),
    )
    counts = ("n", "groups")
    baseline_columns = ("dice", "iou")
    baseline = "otsu"
    floor_words = "Otsu's threshold"
    per_group = True
    unit = ""
    few_words = (
        "the 95 % interval of a dice is up to {width} wide, and a bootstrap interval over so few "
        "groups tends to be too narrow: these scores are rough, and small differences between "
        "modes cannot be detected."
    )
    edge_words = (
        "The interval uses resampling and the test uses sign flips, so they can disagree close to "
        "the limit, and with few groups the interval tends to be too narrow"
    )
    score_note = (
        "In brackets: 95 % bootstrap intervals over groups; those of differences are paired. p: "
        "sign-flip test of the same differences of the dice of groups, averaged over groups."
    )

    def shown(self, numbers: Mapping[str, Any] | pd.Series) -> str:
        """See `Scoring.shown`."""
        return with_range(numbers["dice"], numbers["dice_low"], numbers["dice_high"])

    def second_shown(self, numbers: Mapping[str, Any] | pd.Series) -> str:
        """See `Scoring.second_shown`."""
        return with_range(numbers["iou"], numbers["iou_low"], numbers["iou_high"])

    def gap_shown(self, value: float | None) -> str:
        """See `Scoring.gap_shown`."""
        return signed(value)

    def width(self, value: float) -> str:
        """See `Scoring.width`."""
        return fraction(value)

    def difference(
        self, reference: pd.DataFrame, rows: pd.DataFrame, seed: int
    ) -> PairedDifference | None:
        """See `Scoring.difference`."""
        return mask_difference(reference, rows, Bootstrap(seed))

    def baseline_numbers(
        self, test_rows: pd.DataFrame | None, baseline: pd.Series | None
    ) -> pd.Series | None:
        """See `Scoring.baseline_numbers`: scores of Otsu's threshold."""
        return baseline

    @staticmethod
    def likely_samples(rows: pd.DataFrame) -> pd.DataFrame:
        """See `Scoring.likely_samples`: first those with foreground, of the first images."""
        rows = rows[:_SAMPLES_TRIED]
        return pd.concat([rows[rows["tp"] + rows["fn"] > 0], rows])

    def tested(self, group: str) -> tuple[str, str]:
        """See `Scoring.tested`."""
        return f"paired 95 % bootstrap interval over {group}s", f"sign-flip test over {group}s"


class Top1Scoring(Scoring):
    """Classifiers: top-1, with equal weights of all images."""

    measure = TOP1
    measures = (TOP1,)
    panel = "top1"
    validated = "top-1"
    second = "top-5"
    validation = VALIDATIONS["cls"]
    axis = "top-1 (0 to 1)"
    equal_words = "1 percentage point"
    equal_size = "1 percentage point"
    columns = (*("n", "correct", "top1", "top1_low", "top1_high", "top5"),)
    counts = ("n", "correct")
    baseline_columns = ("top1",)
    baseline = "most frequent class"
    floor_words = "Always the most frequent class"
    per_group = False
    unit = " percentage points"
    few_words = (
        "the 95 % interval of a top-1 is up to {width} wide: these scores are rough, and small "
        "differences between modes cannot be detected."
    )
    edge_words = (
        "The interval is an approximation and McNemar's exact test is conservative, so they can "
        "disagree close to the limit"
    )
    score_note = (
        "In brackets: 95 % Wilson intervals; those of differences are paired (Newcombe's), in "
        "percentage points. p: McNemar's exact test. The most frequent class is the best score of "
        "a constant prediction on these images."
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

    def gap_shown(self, value: float | None) -> str:
        """See `Scoring.gap_shown`: in percentage points."""
        if value is None or is_missing(value):
            return MISSING
        shown = f"{100 * value:+.1f}"
        return "0.0" if shown in ("+0.0", "-0.0") else shown

    def width(self, value: float) -> str:
        """See `Scoring.width`."""
        return f"{decimal(100 * value)} percentage points"

    def difference(
        self, reference: pd.DataFrame, rows: pd.DataFrame, seed: int
    ) -> PairedDifference | None:
        """See `Scoring.difference`."""
        return class_difference(reference, rows)

    def baseline_numbers(
        self, test_rows: pd.DataFrame | None, baseline: pd.Series | None
    ) -> dict[str, float] | None:
        """See `Scoring.baseline_numbers`: always the most frequent class."""
        return None if test_rows is None else most_frequent(test_rows)

    def tested(self, group: str) -> tuple[str, str]:
        """See `Scoring.tested`."""
        return "paired 95 % interval", "McNemar's exact test"


def most_frequent(rows: pd.DataFrame) -> dict[str, float]:
    """The accuracy of always predicting the most frequent class of `rows`."""
    counts = rows["target"].value_counts()
    return {"n": len(rows), "top1": float(counts.iloc[0]) / len(rows)}


class FewClassesScoring(Top1Scoring):
    """Classifiers of at most five classes, which have no second score: their top-5 is 100 %."""

    second = ""


SCORINGS: dict[Literal["cls", "seg"], Scoring] = {"cls": Top1Scoring(), "seg": DiceScoring()}
_FEW_CLASSES = FewClassesScoring()


def scoring_of(task: Literal["cls", "seg"], dataset: DatasetRecord) -> Scoring:
    """The scores of a run of `task` on `dataset`."""
    few = task == "cls" and dataset.predicted_classes <= 5
    return _FEW_CLASSES if few else SCORINGS[task]


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


def mean_over_transforms(table: pd.DataFrame, by: Measure) -> float:
    """The mean of a measure over the transforms of one model, without `identity`.

    A transform counts by its full range if it was measured, else by its mean over severities, as in
    the ranking of several models (`metrics.verdicts.rank_probabilities`). NaN without transforms,
    and if images of one are missing entirely: the means of two models would be of other transforms.
    """
    rows = table[table["transform"] != "identity"]
    lowest = rows.groupby("transform")["severity"].transform("min")
    rows = rows[(lowest > 0) | (rows["severity"] == 0)]
    by_transform = rows.groupby("transform")[by.column].mean()
    return float("nan" if rows[by.column].isna().any() else by_transform.mean())


def best_and_worst(table: pd.DataFrame, by: Measure) -> Extremes:
    """All transforms of one model with the highest and with the lowest measure, in their order.

    No transform is in the worst list if all have the same value.
    """
    rows = representatives(table).dropna(subset=[by.column])
    scores = rows[by.column]
    cells = list(zip(rows["transform"].astype(str), rows["severity"].astype(int), strict=True))
    best = [cell for cell, score in zip(cells, scores, strict=True) if score == scores.max()]
    worst = [cell for cell, score in zip(cells, scores, strict=True) if score == scores.min()]
    return Extremes(best, [] if len(best) == len(cells) else worst)


def extremes(table: pd.DataFrame, by: Measure) -> Extremes:
    """The best and worst transforms by a measure, averaged over the models.

    No transform is in both lists; if their number is odd and small, the best list has one more.
    Ties are in the order of the run.

    Args:
        table: `cell_table.table` of a run.
        by: The measure.
    """
    rows = representatives(table)
    means = rows.groupby(["transform", "severity"], sort=False)[by.column].agg(["mean", "count"])
    complete = means.loc[means["count"] == table["model"].nunique(), "mean"]
    order = complete.sort_values(ascending=False, kind="stable")
    ranked = [(str(t), int(s)) for t, s in order.index]
    best = ranked[: min(EXTREMES_SHOWN, (len(ranked) + 1) // 2)]
    worst = ranked[len(best) :][-EXTREMES_SHOWN:]
    return Extremes(best, worst[::-1])
