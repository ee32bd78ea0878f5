"""The results table of a run: one row of metrics per (model, transform, severity)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from robustcli.core.names import TaskName
from robustcli.evaluation.record import RunRecord, read_record
from robustcli.evaluation.store import Store
from robustcli.metrics.class_scores import ImageChange, accuracy, compare_with_clean, image_change
from robustcli.metrics.columns import TABLE_COLUMNS, share_columns, share_ids
from robustcli.metrics.intervals import Bootstrap
from robustcli.metrics.mask_scores import compare_masks_with_clean, mask_scores
from robustcli.metrics.verdicts import CellKey, ModelRows
from robustcli.transforms.base import CLEAN, Cell

_TABLE_ONLY = ["top5"]  # lists; for a million rows they need more memory than all other columns


def table(run: Path) -> pd.DataFrame:
    """The results table: one row per (model, transform, severity) in the order of `run.json`.

    `metrics.columns` defines the columns of each task. Shares are fractions in [0, 1]; undefined
    values are NaN. Unfinished cells are included, with the metrics of their finished images.
    """
    record = read_record(run)
    return _as_table((numbers for *_, numbers in _cells(run, record)), record.task)


def table_and_rows(run: Path) -> tuple[pd.DataFrame, ModelRows]:
    """The results table and the rows it is computed from, without `top5`; reads each file once."""
    record = read_record(run)
    rows: dict[str, dict[CellKey, pd.DataFrame]] = {model.name: {} for model in record.models}
    lines = []
    ids: pd.Series | None = None
    for model, cell, frame, numbers in _cells(run, record):
        cell_rows = frame.drop(columns=_TABLE_ONLY, errors="ignore")
        ids = share_ids(cell_rows, ids)
        rows[model][cell.transform, cell.severity] = cell_rows
        lines.append(numbers)
    return _as_table(lines, record.task), rows


def _as_table(lines: Iterable[Mapping[str, object]], task: TaskName) -> pd.DataFrame:
    floats = dict.fromkeys(share_columns(task), float)
    return pd.DataFrame(list(lines), columns=list(TABLE_COLUMNS[task])).astype(floats)


def _cells(
    run: Path, record: RunRecord
) -> Iterator[tuple[str, Cell, pd.DataFrame, dict[str, object]]]:
    """For each model and cell: model, cell, rows, and values of the table."""
    store = Store(run)
    changes: dict[tuple[str, Cell], ImageChange] = {}
    for model in record.models:
        clean = store.rows(model.name, CLEAN, record.task)
        for transform in record.transforms:
            cell = Cell(transform.name, transform.severity)
            rows = clean if cell == CLEAN else store.rows(model.name, cell, record.task)
            key = (model.view, cell)
            if key not in changes:
                changes[key] = image_change(store.inputs(*key, ("changed", "psnr_db")))
            numbers = cell_numbers(record.task, clean, rows, record.seed)
            line = {"model": model.name, **asdict(cell), **numbers, **asdict(changes[key])}
            yield model.name, cell, rows, line


def cell_numbers(
    task: TaskName, clean: pd.DataFrame, rows: pd.DataFrame, seed: int
) -> dict[str, Any]:
    """The scores of one cell by column; None for an undefined score.

    `clean` and `rows` have the columns of `ROW_SCHEMAS`; `seed` is for bootstrap intervals.
    """
    if task == "cls":
        return asdict(accuracy(rows)) | asdict(compare_with_clean(clean, rows))
    bootstrap = Bootstrap(seed)
    return asdict(mask_scores(rows, bootstrap)) | asdict(
        compare_masks_with_clean(clean, rows, bootstrap)
    )
