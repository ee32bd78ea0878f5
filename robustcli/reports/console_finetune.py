"""The tables that `robust finetune` prints."""

from __future__ import annotations

from pathlib import Path

from robustcli.evaluation.paired_masks import MaskDifference
from robustcli.reports.finetuning import Finetuning, ModeRun, read_finetuning
from robustcli.reports.finetuning_scores import Pace, against_full, pace
from robustcli.reports.numbers import (
    EN_DASH,
    counted,
    decimal,
    duration,
    fraction,
    fraction_range,
    signed,
)
from robustcli.reports.sections.finetune_gradients import chosen_from, statistic
from robustcli.reports.sections.finetune_verdict import (
    mebibytes,
    megabytes,
    p_value,
    seconds,
    verdict,
)
from robustcli.reports.terminal import grid
from robustcli.reports.training import Held
from robustcli.reports.training_scores import group_score

SHOWN = 12  # tensors; the report has all of them
_SCORES = ("mode", "dice", "95 % interval", "minus full", "95 % interval", "p")
_COSTS = ("mode", "s/iteration", "iterations/s", "trained", "optimizer", "peak memory", "time")


def finetune_table(run: Path) -> str:
    """What was frozen, what each mode cost and gave, and the verdict in words.

    Args:
        run: Directory of a fine-tuning, finished or not.

    Raises:
        UsageError: There is no readable fine-tuning.
    """
    found = read_finetuning(run)
    parts = [_tensors(found), _scores(found), _costs(found), "\n".join(_words(found))]
    told = "\n\n".join(part for part in parts if part) or "Nothing is measured yet."
    return told.replace(EN_DASH, "-")


def _tensors(found: Finetuning) -> str:
    """The top of the table of tensors: those with the smallest statistic."""
    if found.decisions is None:
        return ""
    table = chosen_from(found)
    header = ("parameter", "shape", "count", "statistic", "frozen", "why")
    rows: list[tuple[str, ...]] = [
        (
            *(str(row["name"]), str(row["shape"]), f"{row['count']:,}"),
            *(statistic(row["statistic"]), "frozen" if row["frozen"] else "no", str(row["why"])),
        )
        for _, row in table.head(SHOWN).iterrows()
    ]
    told = grid(header, rows)
    rest = len(found.decisions) - len(rows)
    return f"{told}\nand {counted(rest, 'more tensor')}: see the report" if rest else told


def _scores(found: Finetuning) -> str:
    rows: list[tuple[str, ...]] = [
        (run.mode, *_dice(run.training.test), *_compared(against_full(found, run.mode)))
        for run in found.modes
        if run.training.test is not None
    ]
    otsu = next((r.training.baseline for r in found.modes if r.training.baseline), None)
    if otsu is not None:
        rows.append(("otsu", *_dice(otsu), *_compared(None)))
    return grid(_SCORES, rows) if rows else ""


def _compared(one: MaskDifference | None) -> tuple[str, str, str]:
    if one is None:
        return ("", "", "")
    ends = "" if one.low is None else f"{signed(one.low)} to {signed(one.high)}"
    return (signed(one.dice), ends, "" if one.p is None else p_value(one.p))


def _costs(found: Finetuning) -> str:
    rows = [_cost(run, speed) for run in found.modes if (speed := pace(run)) is not None]
    return grid(_COSTS, rows) if rows else ""


def _cost(run: ModeRun, speed: Pace) -> tuple[str, ...]:
    spent = ("", "", "")
    if run.costs is not None:
        peak = run.costs.peak_memory_bytes
        memory = "" if peak is None else mebibytes(peak)
        spent = (f"{run.costs.trainable:,}", megabytes(run.costs.optimizer_bytes), memory)
    times = (seconds(speed.median), decimal(1 / speed.median, 2))
    return (run.mode, *times, *spent, duration(run.training.seconds))


def _dice(held: Held) -> tuple[str, str]:
    score = group_score(held.numbers)
    return fraction(score.dice), fraction_range(score.dice_low, score.dice_high, "-")


def _words(found: Finetuning) -> list[str]:
    return ["".join(str(span) for span in words) for words in verdict(found)]
