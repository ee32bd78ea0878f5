"""The numbers of a fine-tuning for other programs: a line per mode that has begun."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from robustcli.finetuning.record import Mode
from robustcli.reports.finetuning_findings import Finetuning, ModeRun
from robustcli.reports.scoring import SCORINGS, Difference, Scoring

# The numbers of a fine-tuning's modes against full fine-tuning.


@dataclass(frozen=True)
class Pace:
    """How long an iteration takes in a mode, in seconds: the median and the middle half."""

    median: float
    low: float
    high: float
    iterations: int


def pace(run: ModeRun) -> Pace | None:
    """The pace after the freeze; None before the training has ended."""
    return _pace(run.steady["seconds"])


def pace_before(run: ModeRun) -> Pace | None:
    """The pace of a mode before the freeze; None where nothing was frozen on the way."""
    return _pace(run.steps["seconds"].drop(run.steady.index))


def _pace(seconds: pd.Series) -> Pace | None:
    if seconds.empty:
        return None
    low, median, high = (float(seconds.quantile(share)) for share in (0.25, 0.5, 0.75))
    return Pace(median, low, high, len(seconds))


def seconds_ratio(finetuning: Finetuning, mode: Mode) -> float | None:
    """Time of an iteration over that of full fine-tuning; None until both are measured."""
    own, full = finetuning.of(mode), finetuning.of("full")
    if own is None or full is None:
        return None
    mine, theirs = own.seconds_per_iteration, full.seconds_per_iteration
    return None if mine is None or not theirs else mine / theirs


def against_full(finetuning: Finetuning, mode: Mode) -> Difference | None:
    """What a mode's score has over that of full fine-tuning; None until both are measured."""
    own, full = finetuning.of(mode), finetuning.of("full")
    if mode == "full" or own is None or full is None:
        return None
    if own.training.test is None or full.training.test is None:
        return None
    rows = full.training.test.rows, own.training.test.rows
    return finetuning.scoring.difference(*rows, finetuning.record.seed)


def frozen_elements(run: ModeRun) -> int | None:
    """Elements that stood still at the end of a mode; None before its training has ended."""
    if run.costs is None:
        return None
    return max(0, run.training.record.parameters - run.costs.trainable)


_COUNTS = (
    *("epochs", "chosen_epoch", "iterations", "iterations_measured"),
    *("trainable", "frozen", "optimizer_bytes", "peak_memory_bytes"),
)
_WORDS = ("mode", "model", "dataset", "status")


def columns(scoring: Scoring) -> tuple[str, ...]:
    """The columns of the results of what is scored so."""
    against = f"{scoring.measure.column}_minus_full"
    return (
        *_WORDS,
        *scoring.columns,
        *("epochs", "chosen_epoch", "iterations", "iterations_measured"),
        *("seconds_per_iteration", "iterations_per_second", "seconds_ratio"),
        *("trainable", "frozen", "optimizer_bytes", "peak_memory_bytes", "training_seconds"),
        *(against, f"{against}_low", f"{against}_high", f"{against}_p"),
        *(f"baseline_{name}" for name in scoring.baseline_columns),
    )


COLUMNS = columns(SCORINGS["seg"])


def finetuning_results(finetuning: Finetuning) -> pd.DataFrame:
    """One row per mode with `columns`; a number that is not known is missing.

    Shares are fractions in [0, 1]; times are of the iterations after the freeze.
    """
    names, counts = columns(finetuning.scoring), (*_COUNTS, *finetuning.scoring.counts)
    table = pd.DataFrame([_row(finetuning, run) for run in finetuning.modes], columns=list(names))
    kinds = {name: "Int64" if name in counts else "Float64" for name in names}
    return table.astype({name: kind for name, kind in kinds.items() if name not in _WORDS})


def _row(finetuning: Finetuning, run: ModeRun) -> dict[str, object]:
    training, costs = run.training, run.costs
    row: dict[str, object] = {
        "mode": run.mode,
        "model": finetuning.record.model,
        "dataset": finetuning.record.dataset.name,
        "status": training.record.status,
        "epochs": training.epochs,
        "chosen_epoch": training.record.chosen_epoch,
        "iterations": int(training.metrics["step"].max()) if training.epochs else 0,
        "iterations_measured": len(run.steady),
        "training_seconds": training.seconds,
        "frozen": frozen_elements(run),
        **_times(finetuning, run),
        **_scores(finetuning, run),
    }
    if costs is not None:
        row |= costs.model_dump()
    return row


def _times(finetuning: Finetuning, run: ModeRun) -> dict[str, object]:
    seconds = run.seconds_per_iteration
    return {
        "seconds_per_iteration": seconds,
        "iterations_per_second": 1 / seconds if seconds else None,
        "seconds_ratio": seconds_ratio(finetuning, run.mode),
    }


def _scores(finetuning: Finetuning, run: ModeRun) -> dict[str, object]:
    row: dict[str, object] = {}
    scoring, test, floor = finetuning.scoring, run.training.test, run.training.baseline_numbers
    compared = against_full(finetuning, run.mode)
    if test is not None:
        row |= {name: test.numbers[name] for name in scoring.columns}
    if floor is not None:
        row |= {f"baseline_{name}": floor[name] for name in scoring.baseline_columns}
    if compared is not None:
        against = f"{scoring.measure.column}_minus_full"
        row |= {against: compared.value, f"{against}_p": compared.p}
        row |= {f"{against}_low": compared.low, f"{against}_high": compared.high}
    return row
