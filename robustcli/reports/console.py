"""The tables that commands print."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from robustcli.reports.classifier_statistics import Anchor, ClassifierStatistics
from robustcli.reports.finetuning_findings import (
    Finetuning,
    ModeRun,
    Pace,
    against_full,
    pace,
    read_finetuning,
)
from robustcli.reports.finetuning_words import chosen_from, summary
from robustcli.reports.measure import DICE, TOP1, Measure, extremes
from robustcli.reports.numbers import (
    EN_DASH,
    MISSING,
    as_printed,
    cell_label,
    counted,
    decimal,
    duration,
    fraction,
    fraction_range,
    mebibytes,
    megabytes,
    p_value,
    percent,
    percent_range,
    seconds,
    statistic,
)
from robustcli.reports.scoring import Difference, Scoring
from robustcli.reports.statistics import Statistics
from robustcli.reports.training_findings import (
    HeldOutResults,
    Score,
    Training,
    group_score,
    pooled,
    read_training,
)
from robustcli.reports.zoo_rows import published

# How a comparison over transforms is laid out in a terminal.


MODELS_ABREAST = 4


@dataclass(frozen=True)
class Kind:
    """What the table of a task shows.

    Args:
        measure: Its number.
        header: Over the number.
        unit: After the number in a sentence.
        extra: Over one more column.
        show_extra: What that column says of a row.
        show_clean: What a sentence says of the row of the untouched images.
    """

    measure: Measure
    header: str
    unit: str
    extra: str
    show_extra: Callable[[pd.Series], str]
    show_clean: Callable[[pd.Series], str]


def comparison_table(table: pd.DataFrame, kind: Kind) -> str:
    """Transforms x models: the number with its interval, then one line per model.

    One model gets more columns; many models get several tables of at most MODELS_ABREAST.
    """
    models = [str(name) for name in table["model"].unique()]
    if len(models) == 1:
        grids = [_detailed(table, kind)]
    else:
        starts = range(0, len(models), MODELS_ABREAST)
        grids = [_abreast(table, models[start : start + MODELS_ABREAST], kind) for start in starts]
    summary = "\n".join(_summary(table, model, kind) for model in models)
    return "\n\n".join([*grids, summary])


def _detailed(table: pd.DataFrame, kind: Kind) -> str:
    header = ("transform", kind.extra, kind.header, "95 % interval", "drop", "retention %")
    return grid(header, [_detailed_row(row, kind) for _, row in table.iterrows()])


def _detailed_row(row: pd.Series, kind: Kind) -> tuple[str, ...]:
    n = int(row["n"])
    return (
        cell_label(row["transform"], row["severity"]),
        kind.show_extra(row),
        kind.measure.value(row),
        kind.measure.value_range(row, "-"),
        kind.measure.show(row["drop"], n),
        percent(row["retention"], n),
    )


def _abreast(table: pd.DataFrame, models: list[str], kind: Kind) -> str:
    columns = [_column(table[table["model"] == model], kind) for model in models]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [(label, *(column.get(label, "") for column in columns)) for label in labels]
    return grid((f"{kind.header} (95 % interval)", *models), rows)


def _column(rows: pd.DataFrame, kind: Kind) -> dict[str, str]:
    return {
        cell_label(
            row["transform"], row["severity"]
        ): f"{kind.measure.value(row)} ({kind.measure.value_range(row, '-')})"
        for _, row in rows.iterrows()
    }


def _summary(table: pd.DataFrame, model: str, kind: Kind) -> str:
    rows = table[table["model"] == model]
    clean = rows[rows["transform"] == "identity"]
    parts = [f"{kind.show_clean(row)} (identity)" for _, row in clean.iterrows()]
    ends = extremes(rows, by=kind.measure)
    for word, cells in (("best", ends.best[:1]), ("worst", ends.worst[:1])):
        parts += [f"{word} {_cell(rows, *cell, kind)}" for cell in cells]
    return f"{model}: {', '.join(parts)}"


def _cell(rows: pd.DataFrame, transform: str, severity: int, kind: Kind) -> str:
    row = rows[(rows["transform"] == transform) & (rows["severity"] == severity)].iloc[0]
    return f"{cell_label(transform, severity)} {kind.measure.value(row)}{kind.unit}"


def grid(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """`rows` under `header`, the first column to the left, the others to the right."""
    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, headers=header, disable_numparse=True, colalign=align)


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


def statistics_lines(statistics: Statistics) -> list[str]:
    """One line per pair of models, and one per model that misses its published accuracy."""
    anchors = statistics.anchors if isinstance(statistics, ClassifierStatistics) else []
    missed = [anchor for anchor in anchors if anchor.status == "outside"]
    return [*statistics.sentences, *map(_warning, missed)]


def _warning(anchor: Anchor) -> str:
    n = anchor.n
    return (
        f"WARNING: {anchor.model} has {percent(anchor.top1, n)} % "
        f"({percent_range(anchor.low, anchor.high, n, '-')}) on ImageNet-1K's validation images, "
        f"published are {percent(anchor.published, n)} %. Check crop, mean and std, the order of "
        f"classes, and the tag of the weights. Here: {anchor.settings}."
    )


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


def _own(name: str, held: HeldOutResults, over: str) -> tuple[str, ...]:
    foreground = fraction(held.numbers["dice_foreground"])
    return _scored(name, group_score(held.numbers), foreground, over)


def _class_table(training: Training) -> str:
    scoring, test, baseline = training.scoring, training.test, training.baseline_numbers
    if test is None or baseline is None:
        return "Nothing is measured yet."
    lines = [(training.record.model, test.numbers), (scoring.baseline, baseline)]
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


# The tables that `robust finetune` prints.


SHOWN = 12  # tensors; the report has all of them
_COSTS = ("mode", "s/iteration", "iterations/s", "trained", "optimizer", "peak memory", "time")


def finetune_table(run: Path) -> str:
    """What was frozen, what each mode cost and gave, and the verdict in words.

    Args:
        run: Directory of a fine-tuning, finished or not.

    Raises:
        UsageError: There is no readable fine-tuning.
    """
    finetuning = read_finetuning(run)
    parts = [
        _tensors(finetuning),
        _scores(finetuning),
        _costs(finetuning),
        "\n".join(summary(finetuning)),
    ]
    told = "\n\n".join(part for part in parts if part) or "Nothing is measured yet."
    return told.replace(EN_DASH, "-")


def _tensors(finetuning: Finetuning) -> str:
    """The top of the table of tensors: those with the smallest statistic."""
    if finetuning.decisions is None:
        return ""
    table = chosen_from(finetuning)
    header = ("parameter", "shape", "count", "statistic", "frozen", "why")
    rows: list[tuple[str, ...]] = [
        (
            *(str(row["name"]), str(row["shape"]), f"{row['count']:,}"),
            *(statistic(row["statistic"]), "frozen" if row["frozen"] else "no", str(row["why"])),
        )
        for _, row in table.head(SHOWN).iterrows()
    ]
    told = grid(header, rows)
    rest = len(finetuning.decisions) - len(rows)
    return f"{told}\nand {counted(rest, 'more tensor')}: see the report" if rest else told


def _scores(finetuning: Finetuning) -> str:
    scoring = finetuning.scoring
    rows: list[tuple[str, ...]] = [
        (
            *(run.mode, *_score(scoring, run.training.test.numbers)),
            *_compared(scoring, against_full(finetuning, run.mode)),
        )
        for run in finetuning.modes
        if run.training.test is not None
    ]
    baseline = finetuning.baseline_numbers
    if baseline is not None:
        rows.append((scoring.baseline, *_score(scoring, baseline), *_compared(scoring, None)))
    name = scoring.measure.name
    header = ("mode", name, "95 % interval", "minus full", "95 % interval", "p")
    return grid(header, rows) if rows else ""


def _compared(scoring: Scoring, one: Difference | None) -> tuple[str, str, str]:
    if one is None:
        return ("", "", "")
    ends = "" if one.low is None else f"{scoring.apart(one.low)} to {scoring.apart(one.high)}"
    return (scoring.apart(one.value), ends, "" if one.p is None else p_value(one.p))


def _costs(finetuning: Finetuning) -> str:
    rows = [_cost(run, speed) for run in finetuning.modes if (speed := pace(run)) is not None]
    return grid(_COSTS, rows) if rows else ""


def _cost(run: ModeRun, speed: Pace) -> tuple[str, ...]:
    spent = ("", "", "")
    if run.costs is not None:
        peak = run.costs.peak_memory_bytes
        memory = "" if peak is None else mebibytes(peak)
        spent = (f"{run.costs.trainable:,}", megabytes(run.costs.optimizer_bytes), memory)
    times = (seconds(speed.median), decimal(1 / speed.median, 2))
    return (run.mode, *times, *spent, duration(run.training.seconds))


def _score(scoring: Scoring, numbers: Mapping[str, Any] | pd.Series) -> tuple[str, str]:
    """The score and its interval, in cells of their own."""
    value, _, ends = scoring.shown(numbers).partition(" (")
    return value, ends.rstrip(")") or ("" if not scoring.per_group else MISSING)
