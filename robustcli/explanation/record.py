"""The files of an explanation: `run.json`, and durable rows and arrays.

There is one pair of files per method, transform and block.
`RUN/rows/MODEL/METHOD/TRANSFORM-SEVERITY/block-0000.parquet` has one row for each photo, view
(clean or transformed) and target (true or predicted class). The `.npz` file of the same stem has
the arrays. The arrays are written first, so both files exist if the Parquet file exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from robustcli.core.rundir import BaseRunRecord, DeviceName, Record, RunKind, changed_fields
from robustcli.evaluation.record import TransformRecord
from robustcli.evaluation.store import rows_in, write_rows
from robustcli.explanation.methods import ExplanationMethod
from robustcli.tasks.record import DatasetRecord, EvaluatedPart, ModelRecord, dataset_differences
from robustcli.transforms.base import CLEAN, Cell

# `run.json`.

ChoiceRule = Literal["ids", "worst", "class", "subset"]


class ChoiceRecord(Record):
    """How the explained photos were selected.

    Args:
        rule: `ids`: named by the user; `worst`: largest fall of the score under the transforms;
            `class`: photos of one class; `subset`: a random subset.
        count: Requested number of photos; None for all.
        class_name: True class of the photos; None for any.
        source: Folder of the evaluation whose predictions were used; None if none was named.
    """

    rule: ChoiceRule
    count: int | None = None
    class_name: str | None = None
    source: str | None = None


class ExplainRecord(BaseRunRecord):
    """The content of `run.json` of an explanation.

    `methods` are names in `methods.METHODS`. `layer` is the layer that the user named for Grad-CAM.
    `sanity` is whether maps were repeated with shuffled weights. `images` are the ids of the
    explained photos in order (empty until they are selected), with `block_size` photos per file.
    `boxes` is the SHA-256 of the file of object boxes. `mask_class` is the explained class of a
    segmenter with several classes; None for all classes against background.

    Maps of `schema_version` 1 start from black, also for models that subtract no mean colour.
    """

    schema_version: int = 2
    kind: Literal["explanation"] = "explanation"
    task: Literal["cls", "seg"]
    status: Literal["running", "complete", "partial", "failed"]
    seed: int
    apply_at: Literal["original", "crop"]
    block_size: int
    dataset: DatasetRecord
    model: ModelRecord
    transforms: list[TransformRecord]
    methods: list[str]
    layer: str | None
    sanity: bool
    choice: ChoiceRecord
    images: list[str]
    versions: dict[str, str]
    device: DeviceName
    split: EvaluatedPart | None = None
    boxes: str | None = None
    mask_class: str | None = None


_FLAGS = {
    "seed": "`--seed`",
    "apply_at": "`--apply-at`",
    "layer": "`--layer`",
    "sanity": "`--sanity`",
    "boxes": "the hash of `--boxes`",
    "mask_class": "`--class`",
}
_MODEL_FLAGS = {
    "name": "`--model`",
    "builder": "`--model`",
    "weights_sha256": "the hash of the weights (`--weights`)",
    "arguments": "`--model-arg`",
    "preprocessing": "preprocessing (`--resize`, `--crop`, `--interpolation`, `--mean`, `--std`)",
    "untrained": "`--untrained`",
}


def _differences(old: ExplainRecord, new: ExplainRecord) -> Iterator[str]:
    if old.schema_version != new.schema_version:
        yield "Its maps are of an earlier version of `robust` and not comparable with new ones."
    yield from changed_fields(old.model, new.model, _MODEL_FLAGS)
    yield from old.model.code_differences(new.model)
    yield from dataset_differences(
        old.dataset, new.dataset, "`--data`, `--per-class`, `--limit`, `--split`, `--seed`"
    )
    yield from changed_fields(old, new, _FLAGS)
    before, now = ([f"{t.name} {t.parameters}" for t in record.transforms] for record in (old, new))
    if before != now:
        names = [", ".join(t.name for t in record.transforms) for record in (old, new)]
        yield f"`--transform` was {names[0]}, now it is {names[1]}."


def _kept_fields(old: ExplainRecord, new: ExplainRecord) -> dict[str, Any]:
    """Fields of the new record that keep old values: block size, photos, and all old methods.

    Versions and device of this process are added once it computes maps.
    """
    methods = list(dict.fromkeys([*old.methods, *new.methods]))
    return {
        "block_size": old.block_size,
        "methods": methods,
        "images": old.images,
        "versions": old.versions,
        "device": old.device,
    }


EXPLANATION = RunKind(
    ExplainRecord,
    "an explanation",
    "robust explain",
    ("rows", "panels", "figures", "evaluation"),
    ("results.csv", "results.json", "report.md", "report.html"),
    _differences,
    _kept_fields,
    interrupted="partial",
)
"""Defines the run folders of `robust explain`."""


def read_explain_record(run: Path) -> ExplainRecord:
    """The record of the explanation in the folder `run`. Raises the errors of `RunKind.read`."""
    return EXPLANATION.read(run)


# Rows and arrays.

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
        maps: Evidence for the target per pixel, float32 (M, H, W); signed for methods with signs.
        photos: The network's inputs before normalisation, uint8 (P, H, W, 3).
        image_ids: Image id of each photo (P).
        views: `clean` or `transformed` for each photo (P).
        pictures: Generated pictures, uint8 (M, H, W, 3), for methods that show learned features;
            else None.
    """

    maps: NDArray[np.floating]
    photos: NDArray[np.uint8]
    image_ids: tuple[str, ...]
    views: tuple[str, ...]
    pictures: NDArray[np.uint8] | None = None


def cells_of(method: ExplanationMethod, cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """The cells with a file: each transform (its file has clean maps too), or only clean."""
    changed = tuple(cell for cell in cells if cell != CLEAN)
    return (CLEAN,) if method.kind == "model" or not changed else changed


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
