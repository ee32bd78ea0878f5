"""Everything a report is about, read once from the directory of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from robustcli.evaluation.cell_table import table
from robustcli.evaluation.record import RunRecord, read_record
from robustcli.evaluation.sessions import Session, read_sessions
from robustcli.evaluation.store import Store
from robustcli.tasks.record import ModelRecord


@dataclass(frozen=True)
class Findings:
    """One run as the report sees it.

    Args:
        run: Its directory.
        record: Its `run.json`.
        table: Its numbers (`metrics.table`).
        sessions: What computing them cost.
        skipped: The images that could not be read (columns: image_id, reason).
    """

    run: Path
    record: RunRecord
    table: pd.DataFrame
    sessions: list[Session]
    skipped: pd.DataFrame

    @property
    def models(self) -> list[ModelRecord]:
        """The models in the order of the run."""
        return self.record.models

    @property
    def expected(self) -> int:
        """How many images a finished cell has."""
        return self.record.dataset.images - self.skipped["image_id"].nunique()

    @property
    def n(self) -> int:
        """How many images the fullest cell has; it decides how many digits mean something."""
        return int(self.table["n"].max()) if len(self.table) else 0

    @property
    def unfinished(self) -> pd.DataFrame:
        """The rows of `table` that lack images."""
        return self.table[self.table["n"] < self.expected]

    @property
    def missing(self) -> int:
        """How many predictions of the run's models and transforms are not there."""
        return int((self.expected - self.unfinished["n"]).sum())

    @property
    def progress(self) -> str:
        """How many of how many predictions are missing, in words."""
        return f"{self.missing:,} of {self.expected * len(self.table):,} predictions are missing"

    @property
    def is_partial(self) -> bool:
        """Whether something is still to be computed."""
        return self.record.status != "complete" or not self.unfinished.empty

    def of_model(self, name: str) -> pd.DataFrame:
        """The rows of one model, one per transform and severity."""
        return self.table[self.table["model"] == name].reset_index(drop=True)


def read_findings(run: Path) -> Findings:
    """The findings of the run in directory `run`.

    Raises:
        UsageError: There is no readable run.
    """
    return Findings(run, read_record(run), table(run), read_sessions(run), Store(run).skipped())
