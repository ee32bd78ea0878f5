"""Everything that the report of a training is about, read once from its directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from robustcli.core.io import reading
from robustcli.core.rundir import has_record
from robustcli.evaluation.store import Store
from robustcli.reports.findings import Findings, read_findings
from robustcli.reports.numbers import counted
from robustcli.reports.scoring import SCORINGS, Scoring, most_frequent
from robustcli.training.record import PAPER, TrainRecord, read_train_record
from robustcli.transforms.base import CLEAN, Cell

_IDENTITY = Cell("identity", 0)


@dataclass(frozen=True)
class HeldOutResults:
    """One model on the held-out images: its numbers and the rows that they come from.

    Args:
        findings: The evaluation.
        numbers: The line of its table (columns: `metrics.SEG_COLUMNS`, of classifiers COLUMNS).
        rows: Of every image (columns: `store.MASK_SCHEMA` or `PREDICTION_SCHEMA`).
    """

    findings: Findings
    numbers: pd.Series
    rows: pd.DataFrame

    @property
    def groups(self) -> int:
        """Independent units among the images; those of a classifier are all on their own."""
        return int(self.numbers.get("groups", self.numbers["n"]))


@dataclass(frozen=True)
class Training:
    """One training run as a report sees it.

    Args:
        run: Its directory.
        record: Its `run.json`.
        metrics: A line per finished epoch (columns: `record.Validation.metrics`).
        test: The chosen weights on the held-out images; None until they are measured.
        baseline: Otsu's threshold on the same images, likewise.
        paper: What the paper's way of scoring needs (columns: PAPER); protocol `paper` only.
        weights_bytes: Size of the chosen weights' file.
    """

    run: Path
    record: TrainRecord
    metrics: pd.DataFrame
    test: HeldOutResults | None
    baseline: HeldOutResults | None
    paper: pd.DataFrame | None
    weights_bytes: int | None

    @property
    def scoring(self) -> Scoring:
        """What it is scored by."""
        return SCORINGS[self.record.task]

    @property
    def baseline_numbers(self) -> Mapping[str, Any] | pd.Series | None:
        """The numbers that need no training: of Otsu's threshold, or of the most frequent class.

        None until the held-out images are measured.
        """
        if self.record.task == "seg":
            return None if self.baseline is None else self.baseline.numbers
        return None if self.test is None else most_frequent(self.test.rows)

    @property
    def is_partial(self) -> bool:
        """Whether something is still to be done."""
        return self.record.status != "complete"

    @property
    def seconds(self) -> float | None:
        """What the epochs took with their validation; None before the first has ended."""
        return float(self.metrics["seconds"].sum()) if len(self.metrics) else None

    @property
    def median_seconds(self) -> float:
        """What an epoch took with its validation."""
        return float(self.metrics["seconds"].median())

    @property
    def waiting_share(self) -> float:
        """The share of the time of all epochs in which the network waited for images."""
        waiting = float((self.metrics["waiting_share"] * self.metrics["seconds"]).sum())
        return waiting / max(self.seconds or 0.0, 1e-9)

    @property
    def steps(self) -> int:
        """How many optimizer steps the finished epochs took."""
        return int(self.metrics["step"].max()) if self.epochs else 0

    @property
    def machine(self) -> str:
        """The device with its threads and processes; a CPU's name says its threads already."""
        record = self.record
        threads = "" if "thread" in record.device else f", {counted(record.threads, 'thread')}"
        shared = f", {record.devices} processes" if record.devices > 1 else ""
        return f"{record.device}{threads}{shared}"

    @property
    def epochs(self) -> int:
        """How many were finished."""
        return len(self.metrics)

    @property
    def tolerance(self) -> int | None:
        """What masks were compared with, in pixels; None for data without, or not measured yet."""
        return None if self.test is None else self.test.findings.record.dataset.tolerance

    @property
    def groups(self) -> str:
        """What the groups of images are, in the plural."""
        return f"{self.record.grouping}s"


def read_training(run: Path) -> Training:
    """The training in directory `run`, as far as it has come.

    Raises:
        UsageError: There is no readable training run.
    """
    record = read_train_record(run)
    weights = run / "weights.safetensors"
    return Training(
        run,
        record,
        _metrics(run / "metrics.csv", SCORINGS[record.task].validation.metrics),
        _held(run / "test"),
        _held(run / "baseline"),
        _paper(run / "paper.parquet"),
        weights.stat().st_size if weights.is_file() else None,
    )


def _metrics(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame(columns=list(columns), dtype=float)
    return read_table(path, columns)


def _paper(path: Path) -> pd.DataFrame | None:
    return read_table(path, PAPER) if path.is_file() else None


def read_table(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The CSV or Parquet file `path` of a run, with `columns` or all of them.

    Raises:
        RunError: It is damaged.
    """
    with reading(path):
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        return table if columns is None else table[list(columns)]


def _held(run: Path) -> HeldOutResults | None:
    """The only model of an evaluation on untouched images; None where it has not begun."""
    if not has_record(run):
        return None
    findings = read_findings(run)
    numbers = findings.table[findings.table["transform"] == "identity"].iloc[0]
    store, name = Store(run), str(numbers["model"])
    rows = store.rows(name, CLEAN, findings.record.task)
    return HeldOutResults(findings, numbers, rows) if len(rows) else None
