"""What a run's record counts while it goes: images of its parts, memory and energy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustcli.data.splits import write_splits
from robustcli.evaluation.device import DeviceMonitor
from robustcli.training.memory import peak_bytes
from robustcli.training.opening import update
from robustcli.training.record import read_train_record
from robustcli.training.task import Selection


def count_splits(selection: Selection, train: Sequence[Any], val: Sequence[Any]) -> None:
    """Writes which image is in which part, and counts them in the record.

    Args:
        selection: With the parts.
        train: The decoded images of the training part.
        val: Those of the validation part.
    """
    counts = selection.task.counts(selection, train, val)
    write_splits(selection.run / "splits.csv", selection.splits)
    update(selection.run, splits=counts)


def count_costs(run: Path, monitor: DeviceMonitor) -> None:
    """Adds what this process used to what those before it did: peak memory and energy."""
    before, use = read_train_record(run), monitor.use()
    peak = peak_bytes() if use is None else use.peak_memory_bytes
    energy = None if use is None else use.energy_joules
    update(
        run,
        peak_memory_bytes=max(peak, before.peak_memory_bytes or 0),
        energy_joules=_sum(before.energy_joules, energy),
    )


def _sum(before: float | None, now: float | None) -> float | None:
    return now if before is None else before + (now or 0.0)
