"""The folder of a training: one process group at a time, new or going on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robustcli.core.errors import errors_of
from robustcli.core.ownership import owned
from robustcli.evaluation.record import FILE_NAME
from robustcli.training.record import TrainRecord, read_train_record, write_train_record
from robustcli.training.resume import is_done, joined

FOLDERS = ("checkpoints", "cache", "tensorboard", "test", "baseline", "figures", "panels")
FILES = (
    *(FILE_NAME, "splits.csv", "metrics.csv", "weights.safetensors", "paper.parquet"),
    *("results.csv", "results.json", "report.md", "report.html"),
)


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Makes the folder and holds it.

    Raises:
        RunError: Another process works there, or the folder cannot be made.
    """
    with owned(run):
        _remove_leftovers(run)
        yield


def _remove_leftovers(run: Path) -> None:
    """What a killed process left: half-written files, decoded images."""
    shutil.rmtree(run / "cache", ignore_errors=True)
    for folder in (run, run / "checkpoints"):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def open_training(run: Path, new: TrainRecord, *, fresh: bool) -> bool:
    """Writes the record of a training that begins or goes on; False where it is finished.

    Raises:
        UsageError: The folder holds a training with other settings.
    """
    if fresh:
        empty(run)
    if (run / FILE_NAME).is_file():
        old = read_train_record(run)
        new = joined(run, old, new)
        if is_done(old, new):
            return False
    write_train_record(run, new)
    return True


def empty(run: Path) -> None:
    """Removes what a training consists of, and nothing that somebody else put there."""
    for name in FOLDERS:
        shutil.rmtree(run / name, ignore_errors=True)
    for name in FILES:
        (run / name).unlink(missing_ok=True)


def update(run: Path, **changes: Any) -> None:
    """Writes the record of `run` anew with `changes`."""
    record = read_train_record(run)
    now = datetime.now(UTC)
    write_train_record(run, record.model_copy(update={**changes, "updated": now}))


@contextmanager
def closing(run: Path) -> Iterator[None]:
    """Sets the status of `run` on leaving: `complete`, or `failed` where an error ended it."""
    try:
        with errors_of(run):
            yield
    except Exception:
        update(run, status="failed")
        raise
    update(run, status="complete")
