"""The table of a run: one line of numbers per (model, transform, severity)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from robustcli.evaluation.record import RunRecord, read_record
from robustcli.evaluation.store import Store
from robustcli.metrics.class_scores import ImageChange, image_change
from robustcli.metrics.columns import TABLE_COLUMNS, cell_numbers, share_columns
from robustcli.tasks.record import ModelRecord
from robustcli.transforms.base import CLEAN, Cell


def table(run: Path) -> pd.DataFrame:
    """One row per (model, transform, severity) in the order of `run.json`.

    The columns are those of the run's task in `metrics.columns`. Shares are fractions in [0, 1]; an
    undefined number is NaN. Unfinished cells are kept and count the images that they have.
    """
    record, store = read_record(run), Store(run)
    changes: dict[tuple[str, Cell], ImageChange] = {}
    rows = [row for model in record.models for row in _rows(store, record, model, changes)]
    floats = dict.fromkeys(share_columns(record.task), float)
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS[record.task])).astype(floats)


def _rows(
    store: Store, record: RunRecord, model: ModelRecord,
    changes: dict[tuple[str, Cell], ImageChange],
) -> Iterator[dict[str, object]]:  # fmt: skip
    clean = store.rows(model.name, CLEAN, record.task)
    for transform in record.transforms:
        cell = Cell(transform.name, transform.severity)
        rows = store.rows(model.name, cell, record.task)
        key = (model.view, cell)
        if key not in changes:
            changes[key] = image_change(store.inputs(*key))
        numbers = cell_numbers(record.task, clean, rows, record.seed)
        yield {"model": model.name, **asdict(cell), **numbers, **asdict(changes[key])}
