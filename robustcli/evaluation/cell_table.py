"""The table of a run: one line of numbers per (model, transform, severity)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from robustcli.evaluation.record import ModelRecord, RunRecord, read_record
from robustcli.evaluation.store import Cell, Store
from robustcli.metrics.class_scores import ImageChange, accuracy, compare, image_change
from robustcli.metrics.intervals import Bootstrap
from robustcli.metrics.mask_scores import compare_masks, mask_scores

IDENTITY = Cell("identity", 0)
COLUMNS = (
    *("model", "transform", "severity", "n", "correct", "top1", "top1_low", "top1_high", "top5"),
    *("clean_top1", "drop", "retention", "unchanged_share", "psnr_db"),
    *("drop_low", "drop_high", "paired_n"),
)
SEG_COLUMNS = (
    *("model", "transform", "severity", "n", "groups", "dice", "dice_low", "dice_high"),
    *("iou", "iou_low", "iou_high", "dice_image", "dice_image_low", "dice_image_high"),
    *("dice_foreground", "precision", "recall", "hd95", "boundary_dice"),
    *("relaxed_precision", "relaxed_precision_low", "relaxed_precision_high"),
    *("relaxed_recall", "relaxed_recall_low", "relaxed_recall_high"),
    *("clean_dice", "drop", "drop_low", "drop_high", "retention"),
    *("unchanged_share", "psnr_db", "paired_groups"),
)
_NO_SHARES = (
    "model",
    "transform",
    "severity",
    "n",
    "correct",
    "groups",
    "paired_n",
    "paired_groups",
)


@dataclass(frozen=True)
class _Kind:
    """How the rows of one task become numbers: `numbers(clean, rows)` gives dataclasses."""

    columns: tuple[str, ...]
    rows: Callable[[Store, str, Cell], pd.DataFrame]
    numbers: Callable[[pd.DataFrame, pd.DataFrame], tuple[Any, ...]]


def table(run: Path) -> pd.DataFrame:
    """One row per (model, transform, severity) in the order of `run.json`.

    The columns are COLUMNS for classifiers and SEG_COLUMNS for segmenters.
    Shares are fractions in [0, 1]; a number that cannot be given is NaN.
    A cell that is not finished is kept and counts the images it has; one cell is read at a time.
    """
    record, store = read_record(run), Store(run)
    kind = _kind(record)
    changes: dict[tuple[str, Cell], ImageChange] = {}
    rows = [row for model in record.models for row in _rows(store, record, model, kind, changes)]
    shares = [c for c in kind.columns if c not in _NO_SHARES]
    return pd.DataFrame(rows, columns=list(kind.columns)).astype(dict.fromkeys(shares, float))


def _kind(record: RunRecord) -> _Kind:
    if record.task == "cls":
        return _Kind(COLUMNS, Store.predictions, lambda clean, rows: (
            accuracy(rows), compare(clean, rows)
        ))  # fmt: skip
    return _Kind(SEG_COLUMNS, Store.masks, partial(_mask_numbers, Bootstrap(record.seed)))


def _mask_numbers(bootstrap: Bootstrap, clean: pd.DataFrame, rows: pd.DataFrame) -> tuple[Any, ...]:
    return mask_scores(rows, bootstrap), compare_masks(clean, rows, bootstrap)


def _rows(
    store: Store,
    record: RunRecord,
    model: ModelRecord,
    kind: _Kind,
    changes: dict[tuple[str, Cell], ImageChange],
) -> Iterator[dict[str, object]]:
    clean = kind.rows(store, model.name, IDENTITY)
    for transform in record.transforms:
        cell = Cell(transform.name, transform.severity)
        rows = kind.rows(store, model.name, cell)
        key = (model.view, cell)
        if key not in changes:
            changes[key] = image_change(store.inputs(*key))
        numbers = (*kind.numbers(clean, rows), changes[key])
        yield {
            "model": model.name,
            **asdict(cell),
            **{name: value for part in numbers for name, value in asdict(part).items()},
        }
