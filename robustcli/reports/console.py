"""The tables that commands print."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from robustcli.reports.measure import DICE, TOP1
from robustcli.reports.numbers import EN_DASH, as_printed, fraction, fraction_range
from robustcli.reports.published import published
from robustcli.reports.terminal import Kind, comparison_table, grid
from robustcli.reports.training import Held, Training, read_training
from robustcli.reports.training_scores import Score, group_score, pooled


def accuracy_table(table: pd.DataFrame) -> str:
    """Transforms x models: top-1 in percent with its 95 % interval, then one line per model.

    One model gets more columns; many models get several tables side by side.

    Args:
        table: `metrics.table` of a run of classifiers.
    """
    return comparison_table(table, _TOP1)


def mask_table(table: pd.DataFrame) -> str:
    """The same for segmenters: dice, in [0, 1].

    Args:
        table: `metrics.table` of a run of segmenters.
    """
    return _plain(comparison_table(table, _DICE))


def training_table(run: Path) -> str:
    """A training's result on its held-out images, Otsu's on the same, and what was published.

    “With foreground” is the mean dice of images that have any.

    Args:
        run: Directory of a training, finished or not.

    Raises:
        UsageError: There is no readable training.
    """
    training = read_training(run)
    if training.record.task == "cls":
        return _plain(_class_table(training))
    record, printed = training.record, published(training.record.model)
    relaxed = () if training.tolerance is None else ("relaxed_precision", "relaxed_recall")
    held = ((record.model, training.test), ("otsu", training.baseline))
    rows = [
        (*_own(name, one, f"{record.grouping}s"), *(fraction(one.numbers[c]) for c in relaxed))
        for name, one in held
        if one is not None
    ]
    paper = pooled(training)
    if paper is not None:
        rows.append(_scored(record.model, paper.score, "", f"batches of {paper.batch}"))
    if printed is not None:
        numbers = (as_printed(printed.dice), "", "", as_printed(printed.iou), "")
        rows.append((f"{record.model}, published", *numbers, "batches, LGG"))
    header = (
        "model",
        "dice",
        "95 % interval",
        "with foreground",
        "IoU",
        "95 % interval",
        "mean over",
        *(column.replace("_", " ") for column in relaxed),
    )
    return _plain(grid(header, [(*row, *("",) * (len(header) - len(row))) for row in rows]))


def _own(name: str, held: Held, over: str) -> tuple[str, ...]:
    foreground = fraction(held.numbers["dice_foreground"])
    return _scored(name, group_score(held.numbers), foreground, over)


def _class_table(training: Training) -> str:
    scoring, test, floor = training.scoring, training.test, training.floor
    if test is None or floor is None:
        return "Nothing is measured yet."
    lines = [(training.record.model, test.numbers), (scoring.baseline, floor)]
    rows: list[tuple[str, ...]] = [
        (name, scoring.shown(one), scoring.second_shown(one)) for name, one in lines
    ]
    return grid(("model", "top-1 (95 % interval)", "top-5"), rows)


def _scored(name: str, score: Score, foreground: str, over: str) -> tuple[str, ...]:
    dice = fraction_range(score.dice_low, score.dice_high, "-")
    iou = fraction_range(score.iou_low, score.iou_high, "-")
    return (name, fraction(score.dice), dice, foreground, fraction(score.iou), iou, over)


def _plain(table: str) -> str:
    """`table` in ASCII, for any terminal."""
    return table.replace(EN_DASH, "-")


def _right(row: pd.Series) -> str:
    return f"{row['correct']} of {row['n']}"


_TOP1 = Kind(TOP1, "top-1 %", " %", "correct", _right, _right)
_DICE = Kind(
    DICE,
    "dice",
    "",
    "IoU",
    lambda row: fraction(row["iou"]),
    lambda row: f"dice {fraction(row['dice'])} on {row['n']} images",
)
