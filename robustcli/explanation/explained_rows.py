"""Durable rows and arrays of explanations: one pair of files per method, transform and block.

`RUN/rows/MODEL/METHOD/TRANSFORM-SEVERITY/block-0000.parquet` has one row for each photo, view
(clean or transformed) and target (true or predicted class). The `.npz` file of the same stem has
the arrays. The arrays are written first, so both files exist if the Parquet file exists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from robustcli.core.io import reading, replacing
from robustcli.core.names import model_folder
from robustcli.evaluation.store import rows_in, write_rows
from robustcli.transforms.base import Cell

ViewName = Literal["clean", "transformed"]
TargetKind = Literal["true", "predicted", "none"]

EXPLAINED_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("image_id", pa.string()),
        ("method", pa.string()),
        ("transform", pa.string()),
        ("severity", pa.int32()),
        ("view", pa.string()),  # clean, transformed
        ("target_kind", pa.string()),  # true, predicted; none for methods without a target
        ("target_class", pa.int32()),  # null for a mask, or without a target
        ("target_label", pa.string()),
        ("probability", pa.float64()),  # of the target in this view; for a mask, the mean inside it
        ("prediction", pa.int32()),  # in this view; null for masks
        ("true_class", pa.int32()),
        ("flipped", pa.bool_()),  # the transformed prediction differs from the clean one
        ("insertion_auc", pa.float64()),
        ("deletion_auc", pa.float64()),
        ("pointing_hit", pa.bool_()),
        ("completeness_error", pa.float64()),
        ("conservation_error", pa.float64()),
        ("bias_relevance", pa.float64()),  # relevance of biases, in the unit of the score
        ("picture_probability", pa.float64()),  # of the target, for a generated picture
        ("map_similarity", pa.float64()),  # correlation with the clean map
        ("centroid_shift", pa.float64()),  # as a share of the diagonal
        ("map_moved", pa.bool_()),  # the clean map was moved by the transform for the comparison
        ("sanity_similarity", pa.float64()),  # correlation with the map of shuffled weights
        ("array_file", pa.string()),  # relative to the run's folder
        ("array_index", pa.int32()),  # into `maps` (and `pictures`)
        ("photo_index", pa.int32()),  # into `photos`
    ]
)
"""Columns of a row. For masks, `flipped` is whether the dice of the two predictions is below one
half. In both views, target kind `predicted` is the class predicted for the transformed photo, so
that clean and transformed maps explain the same class."""

ROWS_FOLDER = "rows"


@dataclass(frozen=True)
class Arrays:
    """The arrays of one file.

    Args:
        maps: Evidence for the target per pixel, float16 (M, H, W); signed for methods with signs.
        photos: The network's inputs before normalisation, uint8 (P, H, W, 3).
        image_ids: Image id of each photo (P).
        views: `clean` or `transformed` for each photo (P).
        pictures: Generated pictures, uint8 (M, H, W, 3), for methods that show learned features;
            else None.
    """

    maps: NDArray[np.float16]
    photos: NDArray[np.uint8]
    image_ids: tuple[str, ...]
    views: tuple[str, ...]
    pictures: NDArray[np.uint8] | None = None


def rows_path(run: Path, model: str, method: str, cell: Cell, block: int) -> Path:
    """Path of the rows of one block."""
    folder = model_folder(run / ROWS_FOLDER, "", model) / method
    return folder / f"{cell.transform}-{cell.severity}" / f"block-{block:04d}.parquet"


def is_done(path: Path) -> bool:
    """Whether the rows at `path` and their arrays exist."""
    return rows_in(path) is not None and path.with_suffix(".npz").is_file()


def write_block(path: Path, rows: Sequence[Mapping[str, Any]], arrays: Arrays) -> None:
    """Writes arrays and rows durably; equal content results in equal bytes."""
    content: dict[str, NDArray[Any]] = {
        "maps": arrays.maps,
        "photos": arrays.photos,
        "image_ids": np.array(arrays.image_ids, dtype=np.str_),
        "views": np.array(arrays.views, dtype=np.str_),
    }
    if arrays.pictures is not None:
        content["pictures"] = arrays.pictures
    with replacing(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **content)  # type: ignore[arg-type,unused-ignore]
    write_rows(path, [dict(row) for row in rows], EXPLAINED_SCHEMA)


def read_explained_rows(run: Path) -> pd.DataFrame:
    """All finished rows of a run (columns: EXPLAINED_SCHEMA), sorted by file."""
    tables = []
    for path in sorted((run / ROWS_FOLDER).glob("*/*/*/block-*.parquet")):
        with reading(
            path, "Remove this file and repeat `robust explain`: only this file is computed again."
        ):
            tables.append(pq.read_table(path, schema=EXPLAINED_SCHEMA, partitioning=None))
    rows: pd.DataFrame = pa.concat_tables(tables or [EXPLAINED_SCHEMA.empty_table()]).to_pandas()
    return rows


def read_arrays(run: Path, array_file: str) -> Arrays:
    """The arrays in the file `array_file`, as named in the column of the rows.

    Raises:
        RunError: The file is damaged or missing.
    """
    path = run / array_file
    with (
        reading(path, "Remove it and repeat `robust explain`: only this file is computed again."),
        np.load(path, allow_pickle=False) as content,
    ):
        return Arrays(
            content["maps"],
            content["photos"],
            tuple(map(str, content["image_ids"])),
            tuple(map(str, content["views"])),
            content.get("pictures"),
        )
