"""Findings of a fine-tuning: its modes, each compared with full fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from robustcli.core.io import reading
from robustcli.core.rundir import has_record
from robustcli.finetuning.record import (
    AFTER_STEPS,
    COSTS,
    DECISION_COLUMNS,
    DECISIONS,
    ITERATIONS,
    MODES,
    PROFILE,
    STEPS,
    SWEEP_FILE,
    SWEEPS,
    FinetuneRecord,
    Mode,
    ModeCosts,
    read_finetune_record,
)
from robustcli.reports.scoring import SCORINGS, ScoreDifference, Scoring
from robustcli.reports.training_findings import TrainingFindings, read_run_table, read_training


@dataclass(frozen=True)
class ModeRun:
    """One mode of a fine-tuning.

    Args:
        mode: Name of the mode.
        training: Its training run.
        steps: A row per iteration (columns: STEPS); empty until the training has ended.
        costs: Costs of the mode; None until the training has ended.
    """

    mode: Mode
    training: TrainingFindings
    steps: pd.DataFrame
    costs: ModeCosts | None

    @property
    def steady(self) -> pd.DataFrame:
        """The iterations after freezing: those with the final set of trained parameters."""
        last = self.steps["trainable"].tail(1)
        return self.steps[self.steps["trainable"].isin(last)]

    @property
    def seconds_per_iteration(self) -> float | None:
        """The median over `steady`; None before the training has ended."""
        steady = self.steady["seconds"]
        return float(steady.median()) if len(steady) else None

    @property
    def frozen_at(self) -> int | None:
        """The last iteration before freezing; None if nothing was frozen during the training."""
        before = len(self.steps) - len(self.steady)
        return int(self.steps["iteration"].iloc[before - 1]) if before else None


@dataclass(frozen=True)
class FinetuningFindings:
    """The results of one fine-tuning.

    Args:
        run: Folder of the fine-tuning.
        record: Its `run.json`.
        modes: The modes that have started, in the order of the record.
        decisions: The decision for each tensor (columns: DECISION_COLUMNS); None until it is made.
        profile: The gradients (a row per iteration and tensor); None without the file.
        sweep: Results of other rules (columns: SWEEPS); None if they were not measured.
    """

    run: Path
    record: FinetuneRecord
    modes: tuple[ModeRun, ...]
    decisions: pd.DataFrame | None
    profile: pd.DataFrame | None
    sweep: pd.DataFrame | None

    @property
    def scoring(self) -> Scoring:
        """The scores of the task."""
        return SCORINGS[self.record.task]

    @property
    def is_partial(self) -> bool:
        """Whether the fine-tuning is incomplete."""
        return self.record.status != "complete"

    @property
    def measured(self) -> list[ModeRun]:
        """The modes that were evaluated on the held-out images."""
        return [run for run in self.modes if run.training.test is not None]

    @property
    def finished(self) -> list[ModeRun]:
        """The modes whose training is complete."""
        return [run for run in self.modes if run.training.record.status == "complete"]

    @property
    def baseline_numbers(self) -> Mapping[str, Any] | pd.Series | None:
        """See `TrainingFindings.baseline_numbers`."""
        known = (run.training.baseline_numbers for run in self.modes)
        return next((numbers for numbers in known if numbers is not None), None)

    @property
    def held(self) -> int:
        """Number of held-out images; 0 until they are evaluated."""
        training = self.training
        if training is None or training.test is None:
            return 0
        return int(training.test.numbers["n"])

    def of(self, mode: Mode) -> ModeRun | None:
        """The run of a mode; None if it has not started."""
        return next((run for run in self.modes if run.mode == mode), None)

    @property
    def tolerance(self) -> int | None:
        """See `TrainingFindings.tolerance`; None if no mode has it."""
        known = [run.training.tolerance for run in self.modes]
        return next((pixels for pixels in known if pixels is not None), None)

    @property
    def training(self) -> TrainingFindings | None:
        """Any of the trainings, all of which have the same data and recipe."""
        return next((run.training for run in [*self.measured, *self.modes]), None)


def read_finetuning(run: Path) -> FinetuningFindings:
    """The fine-tuning in folder `run`, complete or not.

    Raises:
        UsageError: The fine-tuning does not exist or cannot be read.
    """
    record = read_finetune_record(run)
    begun = [mode for mode in MODES if mode in record.modes and has_record(run / mode)]
    decisions, profile, sweep = run / DECISIONS, run / PROFILE, run / SWEEP_FILE
    return FinetuningFindings(
        run,
        record,
        tuple(_mode(run, mode) for mode in begun),
        _decisions(decisions) if decisions.is_file() else None,
        read_run_table(profile) if profile.is_file() else None,
        _read_sweep(sweep, SWEEPS[record.task]) if sweep.is_file() else None,
    )


def _mode(run: Path, mode: Mode) -> ModeRun:
    steps, costs = run / mode / ITERATIONS, run / mode / COSTS
    return ModeRun(
        mode,
        read_training(run / mode),
        read_run_table(steps, STEPS)
        if steps.is_file()
        else pd.DataFrame(columns=list(STEPS), dtype=float),
        _costs(costs) if costs.is_file() else None,
    )


def _read_sweep(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The sweep in `path`; without the column of freezing steps, rules froze from the start."""
    table = read_run_table(path)
    if AFTER_STEPS not in table:
        table[AFTER_STEPS] = 0
    with reading(path):
        return table[list(columns)]


def _costs(path: Path) -> ModeCosts:
    with reading(path):
        return ModeCosts.model_validate_json(path.read_bytes())


def _decisions(path: Path) -> pd.DataFrame:
    kinds = {"name": str, "shape": str, "count": int, "statistic": float, "why": str}
    with reading(path):
        table = pd.read_csv(path, dtype=kinds)[list(DECISION_COLUMNS)]
        return table.astype({"mamba": bool, "frozen": bool})


@dataclass(frozen=True)
class Pace:
    """Duration of an iteration in a mode, in seconds: median and quartiles."""

    median: float
    low: float
    high: float
    iterations: int


def pace(run: ModeRun) -> Pace | None:
    """The iteration time after freezing; None before the training has ended."""
    return _pace(run.steady["seconds"])


def pace_before(run: ModeRun) -> Pace | None:
    """The iteration time before freezing; None if nothing was frozen during the training."""
    return _pace(run.steps["seconds"].drop(run.steady.index))


def _pace(seconds: pd.Series) -> Pace | None:
    if seconds.empty:
        return None
    low, median, high = (float(seconds.quantile(share)) for share in (0.25, 0.5, 0.75))
    return Pace(median, low, high, len(seconds))


def seconds_ratio(finetuning: FinetuningFindings, mode: Mode) -> float | None:
    """Iteration time divided by that of full fine-tuning; None until both are measured."""
    run, full = finetuning.of(mode), finetuning.of("full")
    if run is None or full is None:
        return None
    seconds, full_seconds = run.seconds_per_iteration, full.seconds_per_iteration
    return None if seconds is None or not full_seconds else seconds / full_seconds


def against_full(finetuning: FinetuningFindings, mode: Mode) -> ScoreDifference | None:
    """The score of a mode minus that of full fine-tuning; None until both are measured."""
    run, full = finetuning.of(mode), finetuning.of("full")
    if mode == "full" or run is None or full is None:
        return None
    if run.training.test is None or full.training.test is None:
        return None
    rows = full.training.test.rows, run.training.test.rows
    return finetuning.scoring.difference(*rows, finetuning.record.seed)


def frozen_elements(run: ModeRun) -> int | None:
    """The number of frozen parameters at the end of a mode; None before its training has ended."""
    if run.costs is None:
        return None
    return max(0, run.training.record.parameters - run.costs.trainable)
