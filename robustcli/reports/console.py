"""Tables that commands print."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tabulate import tabulate

from robustcli.core.names import TaskName
from robustcli.reports.classifier_statistics import Anchor, ClassifierStatistics
from robustcli.reports.findings import Findings
from robustcli.reports.finetuning_findings import (
    FinetuningFindings,
    ModeRun,
    Pace,
    against_full,
    pace,
)
from robustcli.reports.finetuning_words import chosen_from, finetuning_summary
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
from robustcli.reports.scoring import ScoreDifference, Scoring
from robustcli.reports.statistics import Statistics
from robustcli.reports.training_findings import (
    HeldOutResults,
    Score,
    TrainingFindings,
    group_score,
    pooled,
)
from robustcli.reports.zoo_comparison import ZooComparison
from robustcli.reports.zoo_rows import Zoo, printed_of

# Most models in one table of a comparison over transforms.


MODELS_ABREAST = 4


@dataclass(frozen=True)
class TableLayout:
    """Columns and texts of a task's table.

    Args:
        measure: The score of the table.
        header: Header of the score's column.
        unit: Unit after the score in a sentence.
        extra: Header of one more column.
        show_extra: Text of that column for a row.
        show_clean: Text of a sentence for the row of the clean images.
    """

    measure: Measure
    header: str
    unit: str
    extra: str
    show_extra: Callable[[pd.Series], str]
    show_clean: Callable[[pd.Series], str]


def evaluation_table(table: pd.DataFrame, task: TaskName) -> str:
    """A table of transforms x models with intervals, then one line per model, in ASCII.

    One model gets more columns; many models get several tables of at most MODELS_ABREAST.

    Args:
        table: `cell_table.table` of a run.
        task: Task of the run; scores are top-1 in percent for `cls`, dice in [0, 1] for `seg`.
    """
    layout = _LAYOUTS[task]
    models = [str(name) for name in table["model"].unique()]
    if len(models) == 1:
        grids = [_detailed(table, layout)]
    else:
        starts = range(0, len(models), MODELS_ABREAST)
        grids = [
            _side_by_side(table, models[start : start + MODELS_ABREAST], layout) for start in starts
        ]
    summary = "\n".join(_summary(table, model, layout) for model in models)
    return in_ascii("\n\n".join([*grids, summary]))


def _detailed(table: pd.DataFrame, layout: TableLayout) -> str:
    header = ("transform", layout.extra, layout.header, "95 % interval", "drop", "retention %")
    return grid(header, [_detailed_row(row, layout) for _, row in table.iterrows()])


def _detailed_row(row: pd.Series, layout: TableLayout) -> tuple[str, ...]:
    n = int(row["n"])
    return (
        cell_label(row["transform"], row["severity"]),
        layout.show_extra(row),
        layout.measure.value(row),
        layout.measure.value_range(row, "-"),
        layout.measure.show(row["drop"], n),
        percent(row["retention"], n),
    )


def _side_by_side(table: pd.DataFrame, models: list[str], layout: TableLayout) -> str:
    columns = [_column(table[table["model"] == model], layout) for model in models]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [(label, *(column.get(label, "") for column in columns)) for label in labels]
    return grid((f"{layout.header} (95 % interval)", *models), rows)


def _column(rows: pd.DataFrame, layout: TableLayout) -> dict[str, str]:
    return {
        cell_label(
            row["transform"], row["severity"]
        ): f"{layout.measure.value(row)} ({layout.measure.value_range(row, '-')})"
        for _, row in rows.iterrows()
    }


def _summary(table: pd.DataFrame, model: str, layout: TableLayout) -> str:
    rows = table[table["model"] == model]
    clean = rows[rows["transform"] == "identity"]
    parts = [f"{layout.show_clean(row)} (identity)" for _, row in clean.iterrows()]
    ends = extremes(rows, by=layout.measure)
    if ends.worst:
        parts.append(f"best {_cell(rows, *ends.best[0], layout)}")
        parts.append(f"worst {_cell(rows, *ends.worst[0], layout)}")
    else:  # a single transform is neither best nor worst
        parts += [_cell(rows, *cell, layout) for cell in ends.best[:1]]
    return f"{model}: {', '.join(parts)}"


def _cell(rows: pd.DataFrame, transform: str, severity: int, layout: TableLayout) -> str:
    row = rows[(rows["transform"] == transform) & (rows["severity"] == severity)].iloc[0]
    return f"{cell_label(transform, severity)} {layout.measure.value(row)}{layout.unit}"


def grid(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """`rows` under `header`; the first column is aligned left, the others right."""
    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, headers=header, disable_numparse=True, colalign=align)


def evaluation_summary(findings: Findings) -> str:
    """The printed summary of an evaluation: table, verdicts, warnings, and progress if partial."""
    lines = [evaluation_table(findings.table, findings.record.task)]
    lines += statistics_lines(findings.statistics)
    if skipped := findings.record.dataset.images - findings.expected:
        images = counted(findings.record.dataset.images, "image")
        lines.append(f"{skipped:,} of {images} could not be read: left out of every number.")
    if findings.is_partial:
        lines.append(f"Partial run (status: {findings.record.status}): {findings.progress}.")
    return "\n".join(lines)


def statistics_lines(statistics: Statistics) -> list[str]:
    """One line per pair of models, and one per model that misses its published accuracy."""
    anchors = statistics.anchors if isinstance(statistics, ClassifierStatistics) else []
    missed = [anchor for anchor in anchors if anchor.status == "outside"]
    return [*statistics.sentences, *map(_warning, missed)]


def _warning(anchor: Anchor) -> str:
    n = anchor.n
    return (
        f"WARNING: {anchor.model} has {percent(anchor.top1, n)} % "
        f"({percent_range(anchor.low, anchor.high, n, '-')}) on ImageNet-1K's validation images; "
        f"the published value is {percent(anchor.published, n)} %. Check crop, mean and std, the "
        f"order of classes, and the tag of the weights. Settings of this run: {anchor.settings}."
    )


def training_table(training: TrainingFindings) -> str:
    """A training's result on its held-out images, and the baseline's on the same images."""
    return in_ascii(_TRAINING_TABLES[training.record.task](training))


def _mask_table(training: TrainingFindings) -> str:
    """The table of a segmentation training, with the published scores.

    The column `with foreground` is the mean over images that have foreground.
    """
    record, printed = training.record, printed_of(training.record)
    relaxed = () if training.tolerance is None else ("relaxed_precision", "relaxed_recall")
    of_classes = " and classes" if record.dataset.mask_classes else ""
    held = ((record.network, training.test), ("otsu", training.baseline))
    rows = [
        (
            *_held_out(name, test, f"{record.grouping}s{of_classes}"),
            *(fraction(test.numbers[c]) for c in relaxed),
        )
        for name, test in held
        if test is not None
    ]
    paper = pooled(training)
    if paper is not None:
        rows.append(_scored(record.network, paper.score, "", f"batches of {paper.batch}"))
    if printed is not None:
        numbers = (as_printed(printed.dice), "", "", as_printed(printed.iou), "")
        rows.append((f"{record.network}, published", *numbers, "batches, LGG"))
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
    return grid(header, [(*row, *("",) * (len(header) - len(row))) for row in rows])


def _held_out(name: str, held: HeldOutResults, over: str) -> tuple[str, ...]:
    foreground = fraction(held.numbers["dice_foreground"])
    return _scored(name, group_score(held.numbers), foreground, over)


def _class_table(training: TrainingFindings) -> str:
    scoring, test, baseline = training.scoring, training.test, training.baseline_numbers
    if test is None or baseline is None:
        return "Nothing is measured yet."
    lines = [(training.record.network, test.numbers), (scoring.baseline, baseline)]
    rows: list[tuple[str, ...]] = [
        (name, scoring.shown(numbers), scoring.second_shown(numbers)) for name, numbers in lines
    ]
    return grid(("model", "top-1 (95 % interval)", "top-5"), rows)


def _scored(name: str, score: Score, foreground: str, over: str) -> tuple[str, ...]:
    dice = fraction_range(score.dice_low, score.dice_high, "-")
    iou = fraction_range(score.iou_low, score.iou_high, "-")
    return (name, fraction(score.dice), dice, foreground, fraction(score.iou), iou, over)


def zoo_table(zoo: Zoo, comparison: ZooComparison) -> str:
    """A table with a row per training, followed by the conclusions."""
    scoring = zoo.trainings[0].scoring
    header = ("training", "parameters", f"{scoring.measure.name} (95 % interval)", "epoch", "all")
    rows: list[tuple[str, ...]] = [
        (
            zoo.label(training),
            f"{training.record.parameters:,}",
            "not measured" if training.test is None else scoring.shown(training.test.numbers),
            duration(None if (spread := training.epoch_seconds) is None else spread.median),
            duration(training.seconds),
        )
        for training in zoo.trainings
    ]
    sentences = [
        f"Not compared with the others: {', '.join(s.labels)}." for s in comparison.sets[1:]
    ]
    return in_ascii(
        "\n\n".join([grid(header, rows), "\n".join([*comparison.sentences, *sentences])])
    )


def in_ascii(table: str) -> str:
    """`table` in ASCII, for any terminal."""
    return table.replace(EN_DASH, "-")


def _right(row: pd.Series) -> str:
    return f"{row['correct']} of {row['n']}"


_LAYOUTS: Mapping[TaskName, TableLayout] = {
    "cls": TableLayout(TOP1, "top-1 %", " %", "correct", _right, _right),
    "seg": TableLayout(
        DICE,
        "dice",
        "",
        "IoU",
        lambda row: fraction(row["iou"]),
        lambda row: f"dice {fraction(row['dice'])} on {row['n']} images",
    ),
}
_TRAINING_TABLES: Mapping[TaskName, Callable[[TrainingFindings], str]] = {
    "cls": _class_table,
    "seg": _mask_table,
}


# The tables that `robust finetune` prints.


TENSORS_SHOWN = 12  # tensors; the report has all of them
_COSTS = ("mode", "s/iteration", "iterations/s", "trained", "optimizer", "peak memory", "time")


def finetune_table(finetuning: FinetuningFindings) -> str:
    """What was frozen, the costs and scores of each mode, and the verdict as text."""
    parts = [
        _tensors(finetuning),
        _scores(finetuning),
        _costs(finetuning),
        "\n".join(finetuning_summary(finetuning)),
    ]
    return in_ascii("\n\n".join(filter(None, parts)) or "Nothing is measured yet.")


def _tensors(finetuning: FinetuningFindings) -> str:
    """The first rows of the table of tensors: those with the smallest statistic."""
    if finetuning.decisions is None:
        return ""
    table = chosen_from(finetuning)
    header = ("parameter", "shape", "count", "statistic", "frozen", "why")
    rows: list[tuple[str, ...]] = [
        (
            *(str(row["name"]), str(row["shape"]), f"{row['count']:,}"),
            *(statistic(row["statistic"]), "frozen" if row["frozen"] else "no", str(row["why"])),
        )
        for _, row in table.head(TENSORS_SHOWN).iterrows()
    ]
    shown, omitted = grid(header, rows), len(finetuning.decisions) - len(rows)
    return f"{shown}\nand {counted(omitted, 'more tensor')}: see the report" if omitted else shown


def _scores(finetuning: FinetuningFindings) -> str:
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


def _compared(scoring: Scoring, difference: ScoreDifference | None) -> tuple[str, str, str]:
    if difference is None:
        return ("", "", "")
    low, high, p = difference.low, difference.high, difference.p
    interval = "" if low is None else f"{scoring.gap_shown(low)} to {scoring.gap_shown(high)}"
    return (scoring.gap_shown(difference.value), interval, "" if p is None else p_value(p))


def _costs(finetuning: FinetuningFindings) -> str:
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
    """The score and its interval, in separate cells."""
    value, _, ends = scoring.shown(numbers).partition(" (")
    return value, ends.rstrip(")") or ("" if not scoring.per_group else MISSING)
