"""The tables that `robust finetune` prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from robustcli.reports.finetuning import Finetuning, ModeRun, read_finetuning
from robustcli.reports.finetuning_scores import Pace, against_full, pace
from robustcli.reports.numbers import (
    EN_DASH,
    MISSING,
    counted,
    decimal,
    duration,
)
from robustcli.reports.scoring.scoring import Difference, Scoring
from robustcli.reports.sections.finetune_gradients import chosen_from, statistic
from robustcli.reports.sections.finetune_verdict import (
    mebibytes,
    megabytes,
    p_value,
    seconds,
    verdict,
)
from robustcli.reports.terminal import grid

SHOWN = 12  # tensors; the report has all of them
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
    scoring = found.scoring
    rows: list[tuple[str, ...]] = [
        (
            *(run.mode, *_score(scoring, run.training.test.numbers)),
            *_compared(scoring, against_full(found, run.mode)),
        )
        for run in found.modes
        if run.training.test is not None
    ]
    floors = (run.training.floor for run in found.modes)
    floor = next((one for one in floors if one is not None), None)
    if floor is not None:
        rows.append((scoring.baseline, *_score(scoring, floor), *_compared(scoring, None)))
    name = scoring.measure.name
    header = ("mode", name, "95 % interval", "minus full", "95 % interval", "p")
    return grid(header, rows) if rows else ""


def _compared(scoring: Scoring, one: Difference | None) -> tuple[str, str, str]:
    if one is None:
        return ("", "", "")
    ends = "" if one.low is None else f"{scoring.apart(one.low)} to {scoring.apart(one.high)}"
    return (scoring.apart(one.value), ends, "" if one.p is None else p_value(one.p))


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


def _score(scoring: Scoring, numbers: Mapping[str, Any] | pd.Series) -> tuple[str, str]:
    """The score and its interval, in cells of their own."""
    value, _, ends = scoring.shown(numbers).partition(" (")
    return value, ends.rstrip(")") or ("" if not scoring.per_group else MISSING)


def _words(found: Finetuning) -> list[str]:
    return ["".join(str(span) for span in words) for words in verdict(found)]
