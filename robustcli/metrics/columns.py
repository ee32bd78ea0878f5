"""The columns of rows and of tables, by task; the images that several tables of rows contain.

A row is the prediction for one image. A table has one line of scores per (model, transform,
severity), computed from the rows of that cell and of the clean images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from robustcli.core.names import TaskName

PREDICTION_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("target", pa.int32()),
        ("prediction", pa.int32()),
        ("top5", pa.list_(pa.int32())),
        ("probability", pa.float32()),
        ("target_probability", pa.float32()),
    ]
)
_EXACT_MASK_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("group", pa.string()),
        *((count, pa.int64()) for count in ("tp", "fp", "fn", "tn")),
        ("hd95", pa.float64()),
        ("boundary_dice", pa.float64()),
    ]
)
_NEAR_COLUMNS = (("predicted_near", pa.int64()), ("true_near", pa.int64()))
CLASS_COLUMNS = (
    *((f"class_{count}", pa.list_(pa.int64())) for count in ("tp", "fp", "fn")),
    *((f"class_{name}", pa.list_(pa.float64())) for name in ("hd95", "boundary_dice")),
    ("class_confusion", pa.list_(pa.int64())),
)
"""Additional columns for masks of K classes: lists with a value per class, without background, in
the order of the classes. The confusion lists pixel counts by true class (background first) and
predicted class, row by row: (K + 1)^2 values."""
MASK_SCHEMA = pa.schema([*_EXACT_MASK_SCHEMA, *_NEAR_COLUMNS])
"""Pixel counts at the original image size; distances in pixels, null if a mask is empty. The last
two columns only exist for data with a tolerance. With several classes, the columns compare the
pixels of any class with background, and `CLASS_COLUMNS` follow."""
PIXEL_COLUMNS = ("tp", "fp", "fn", "class_tp", "class_fp", "class_fn")
"""The columns from which the dice of a row is computed."""
ROW_SCHEMAS: Mapping[TaskName, pa.Schema] = {
    "cls": PREDICTION_SCHEMA,
    "seg": pa.schema([*MASK_SCHEMA, *CLASS_COLUMNS]),
}


def mask_schema(tolerance: int | None, classes: int = 0) -> pa.Schema:
    """The columns of rows for data with a `tolerance` in pixels (None without one) and `classes`.

    `classes` is the number of classes without background; 0 for masks of foreground and background.
    """
    near_columns = () if tolerance is None else _NEAR_COLUMNS
    return pa.schema([*_EXACT_MASK_SCHEMA, *near_columns, *(CLASS_COLUMNS if classes else ())])


CLASS_TABLE_COLUMNS = (
    *("model", "transform", "severity", "n", "correct", "top1", "top1_low", "top1_high", "top5"),
    *("clean_top1", "drop", "retention", "unchanged_share", "psnr_db"),
    *("drop_low", "drop_high", "paired_n"),
)
MASK_TABLE_COLUMNS = (
    *("model", "transform", "severity", "n", "groups", "dice", "dice_low", "dice_high"),
    *("iou", "iou_low", "iou_high", "dice_image", "dice_image_low", "dice_image_high"),
    *("dice_foreground", "precision", "recall", "hd95", "boundary_dice"),
    *("relaxed_precision", "relaxed_precision_low", "relaxed_precision_high"),
    *("relaxed_recall", "relaxed_recall_low", "relaxed_recall_high"),
    *("clean_dice", "drop", "drop_low", "drop_high", "retention"),
    *("unchanged_share", "psnr_db", "paired_groups", "hd95_n"),
)
_NAMES_AND_COUNTS = (
    *("model", "transform", "severity", "n", "correct", "groups"),
    *("paired_n", "paired_groups", "hd95_n"),
)
TABLE_COLUMNS: Mapping[TaskName, tuple[str, ...]] = {
    "cls": CLASS_TABLE_COLUMNS,
    "seg": MASK_TABLE_COLUMNS,
}
"""The columns of a table in order; shares are fractions in [0, 1]."""


def share_columns(task: TaskName) -> list[str]:
    """The columns with float values (perhaps NaN), without names and counts."""
    return [name for name in TABLE_COLUMNS[task] if name not in _NAMES_AND_COUNTS]


def have_same_images(frames: Sequence[pd.DataFrame]) -> bool:
    """Whether all tables contain the same images (`image_id`), in any order."""
    first = frames[0]["image_id"]
    return all(
        in_same_order(first, frame["image_id"]) or set(first) == set(frame["image_id"])
        for frame in frames[1:]
    )


def common_images(frames: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The rows of the images that all tables contain, in the order of the last table.

    Raises:
        ValueError: A table contains an image twice.
    """
    last = frames[-1]["image_id"]
    if all(in_same_order(last, frame["image_id"]) for frame in frames) and _is_unique(last):
        return list(frames)
    # Converted to Python strings, because lookups of Arrow strings are several times slower.
    indexes = [pd.Index(frame["image_id"].to_numpy(dtype=object)) for frame in frames]
    for index in indexes:
        if not index.is_unique:
            image_id = index[index.duplicated()][0]
            raise ValueError(f"The image `{image_id}` has several rows in one table.")
    shared = reduce(lambda common, ids: common[common.isin(ids)], indexes[:-1], indexes[-1])
    return [
        frame.iloc[index.get_indexer(shared)] for frame, index in zip(frames, indexes, strict=True)
    ]


def share_ids(rows: pd.DataFrame, ids: pd.Series[str] | None) -> pd.Series[str]:
    """Replaces the column `image_id` of `rows` by `ids` if they are equal; returns the column.

    The ids need most of the memory of rows, and are the same in nearly all tables of a run.
    """
    if ids is not None and in_same_order(ids, rows["image_id"]):
        rows["image_id"] = ids
    return rows["image_id"]


def distinct_ids(frames: Iterable[pd.DataFrame]) -> list[pd.Series[str]]:
    """The columns `image_id`, without those that are equal to the one before."""
    columns: list[pd.Series[str]] = []
    for rows in frames:
        if not columns or not in_same_order(columns[-1], rows["image_id"]):
            columns.append(rows["image_id"])
    return columns


def _is_unique(ids: pd.Series[str]) -> bool:
    # Rows are usually sorted by id: comparing neighbours is ten times as fast as hashing.
    values: Any = ids.array
    return bool(np.all(values[1:] > values[:-1])) or ids.is_unique


def in_same_order(first: pd.Series[str], second: pd.Series[str]) -> bool:
    """Whether two columns `image_id` contain the same images in the same order."""
    return len(first) == len(second) and bool(np.all(first.array == second.array))
