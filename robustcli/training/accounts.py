"""What a run's record counts while it goes: images of its parts, memory and energy."""

from __future__ import annotations

from pathlib import Path

from robustcli.data.masks import decode_mask
from robustcli.data.splits import write_splits
from robustcli.evaluation.device import DeviceMonitor
from robustcli.training.batches.loaders import Part
from robustcli.training.describe import split_record
from robustcli.training.memory import peak_bytes
from robustcli.training.opening import update
from robustcli.training.prepare import Selection
from robustcli.training.record import SplitRecord, read_train_record


def count_splits(selection: Selection, train: Part, val: Part) -> None:
    """Writes which image is in which part, and counts them in the record."""
    write_splits(selection.run / "splits.csv", selection.splits)
    test = selection.splits.test
    empty = sum(not decode_mask(pair.mask).any() for pair in test.pairs)
    update(
        selection.run,
        splits={
            "train": split_record(selection.splits.train, train.decoded),
            "val": split_record(selection.splits.val, val.decoded),
            "test": SplitRecord(images=len(test.pairs), groups=len(test.groups), empty=empty),
        },
    )


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
