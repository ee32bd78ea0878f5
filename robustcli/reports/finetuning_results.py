"""The numbers of a fine-tuning for other programs: a line per mode that has begun."""

from __future__ import annotations

import pandas as pd

from robustcli.reports.finetuning import Finetuning, ModeRun
from robustcli.reports.finetuning_scores import against_full, frozen_elements, seconds_ratio
from robustcli.reports.scoring.scoring import Scoring
from robustcli.reports.scoring.scorings import SCORINGS

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


def finetuning_results(found: Finetuning) -> pd.DataFrame:
    """One row per mode with `columns`; a number that is not known is missing.

    Shares are fractions in [0, 1]; times are of the iterations after the freeze.
    """
    names, counts = columns(found.scoring), (*_COUNTS, *found.scoring.counts)
    table = pd.DataFrame([_row(found, run) for run in found.modes], columns=list(names))
    kinds = {name: "Int64" if name in counts else "Float64" for name in names}
    return table.astype({name: kind for name, kind in kinds.items() if name not in _WORDS})


def _row(found: Finetuning, run: ModeRun) -> dict[str, object]:
    training, costs = run.training, run.costs
    row: dict[str, object] = {
        "mode": run.mode,
        "model": found.record.model,
        "dataset": found.record.dataset.name,
        "status": training.record.status,
        "epochs": training.epochs,
        "chosen_epoch": training.record.chosen_epoch,
        "iterations": int(training.metrics["step"].max()) if training.epochs else 0,
        "iterations_measured": len(run.steady),
        "training_seconds": training.seconds,
        "frozen": frozen_elements(run),
        **_times(found, run),
        **_scores(found, run),
    }
    if costs is not None:
        row |= costs.model_dump()
    return row


def _times(found: Finetuning, run: ModeRun) -> dict[str, object]:
    seconds = run.seconds_per_iteration
    return {
        "seconds_per_iteration": seconds,
        "iterations_per_second": 1 / seconds if seconds else None,
        "seconds_ratio": seconds_ratio(found, run.mode),
    }


def _scores(found: Finetuning, run: ModeRun) -> dict[str, object]:
    row: dict[str, object] = {}
    scoring, test, floor = found.scoring, run.training.test, run.training.floor
    compared = against_full(found, run.mode)
    if test is not None:
        row |= {name: test.numbers[name] for name in scoring.columns}
    if floor is not None:
        row |= {f"baseline_{name}": floor[name] for name in scoring.baseline_columns}
    if compared is not None:
        against = f"{scoring.measure.column}_minus_full"
        row |= {against: compared.value, f"{against}_p": compared.p}
        row |= {f"{against}_low": compared.low, f"{against}_high": compared.high}
    return row
