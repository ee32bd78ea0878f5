"""The table of a run: one line of numbers per (model, transform, severity)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from robustcli.evaluation.record import ModelRecord, RunRecord, read_record
from robustcli.evaluation.scores import ImageChange, accuracy, compare, image_change
from robustcli.evaluation.store import Cell, Store

IDENTITY = Cell("identity", 0)
COLUMNS = (
    *("model", "transform", "severity", "n", "correct", "top1", "top1_low", "top1_high", "top5"),
    *("clean_top1", "drop", "retention", "unchanged_share", "psnr_db"),
    *("drop_low", "drop_high", "paired_n"),
)
_COUNTS = ("severity", "n", "correct", "paired_n")
_SHARES = [name for name in COLUMNS if name not in ("model", "transform", *_COUNTS)]


def table(run: Path) -> pd.DataFrame:
    """One row per (model, transform, severity) in the order of `run.json`, with COLUMNS.

    Shares are fractions in [0, 1]; a number that cannot be given is NaN.
    A cell that is not finished is kept and counts the images it has; one cell is read at a time.
    """
    record, store = read_record(run), Store(run)
    changes: dict[tuple[str, Cell], ImageChange] = {}
    rows = [row for model in record.models for row in _rows(store, record, model, changes)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(_SHARES, float))


def _rows(
    store: Store,
    record: RunRecord,
    model: ModelRecord,
    changes: dict[tuple[str, Cell], ImageChange],
) -> Iterator[dict[str, object]]:
    clean = store.predictions(model.name, IDENTITY)
    for transform in record.transforms:
        cell = Cell(transform.name, transform.severity)
        rows = store.predictions(model.name, cell)
        key = (model.view, cell)
        if key not in changes:
            changes[key] = image_change(store.inputs(*key))
        numbers = (accuracy(rows), compare(clean, rows), changes[key])
        yield {
            "model": model.name,
            **asdict(cell),
            **{name: value for part in numbers for name, value in asdict(part).items()},
        }
