"""Storage of rows: one Parquet file per (model, transform, severity) and block of images.

Block files are written atomically and contain a checksum, so existing files define the finished
work:
`RUN/predictions/model=M/transform=T/severity=S/block-000123.parquet` contains predictions (columns:
`metrics.columns`),
`RUN/inputs/view=V/transform=T/severity=S/block-000123.parquet` contains measures of the transformed
images.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from robustcli.core.errors import RunError
from robustcli.core.io import write_bytes
from robustcli.core.names import TaskName, model_folder
from robustcli.metrics.columns import CLASS_COLUMNS, PREDICTION_SCHEMA, ROW_SCHEMAS
from robustcli.transforms.base import Cell

INPUT_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("digest", pa.string()),
        ("psnr_db", pa.float64()),
        ("changed", pa.bool_()),
    ]
)
_BLOCKS = "block-*.parquet"
READERS = 8  # threads: small files spend most of their time waiting for the disk
_OF_CLASSES = tuple(name for name, _ in CLASS_COLUMNS)
_LISTS = PREDICTION_SCHEMA.field("top5").type  # stays in Arrow: objects per row are slow
WRITTEN = {"compression": "snappy", "use_dictionary": False}
"""Options of the Parquet writer. Zstd and dictionaries save 1 kB and double the reading time."""
SKIPPED_SCHEMA = pa.schema([("image_id", pa.string()), ("reason", pa.string())])


class Store:
    """Access to the rows in the folder of one run."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def prediction_path(self, model: str, cell: Cell, block: int) -> Path:
        """Path of the predictions of `model` for `cell` and `block`."""
        folder = model_folder(self.run / "predictions", "model=", model)
        return _cell_path(folder, cell) / _file_name(block)

    def input_path(self, view: str, cell: Cell, block: int) -> Path:
        """Path of the measures of the transformed images of `cell` and `block`."""
        return _cell_path(self.run / "inputs" / f"view={view}", cell) / _file_name(block)

    def skipped_path(self, block: int) -> Path:
        """Path of the list of unreadable images of `block`; without any, the file is absent."""
        return self.run / "skipped" / _file_name(block)

    def rows(
        self, model: str, cell: Cell, task: TaskName, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """The finished rows of one model and cell, in image order.

        `columns` are names in `metrics.columns.ROW_SCHEMAS`, None for all. A column that a file
        lacks is null. Columns of classes are dropped if all their values are null.
        """
        schema = _chosen(ROW_SCHEMAS[task], columns)
        return _read(self.prediction_path(model, cell, 0).parent, schema)

    def inputs(
        self, view: str, cell: Cell, columns: Sequence[str] | None = None, *,
        first_block: bool = False,
    ) -> pd.DataFrame:  # fmt: skip
        """The finished image measures of one view and cell (columns: INPUT_SCHEMA).

        `view` is `ModelRecord.view`; `columns` is None for all columns; `first_block` reads only
        the first block of images.
        """
        block = self.input_path(view, cell, 0)
        pattern = block.name if first_block else _BLOCKS
        return _read(block.parent, _chosen(INPUT_SCHEMA, columns), pattern)

    def skipped(self) -> pd.DataFrame:
        """The images that could not be read, with the reason (columns: SKIPPED_SCHEMA)."""
        return _read(self.run / "skipped", SKIPPED_SCHEMA)

    def reasons(self) -> dict[str, str]:
        """The reason of each image that could not be read, by its id, in image order."""
        skipped = self.skipped()
        return dict(zip(skipped["image_id"], skipped["reason"], strict=True))


def _cell_path(folder: Path, cell: Cell) -> Path:
    return folder / f"transform={cell.transform}" / f"severity={cell.severity}"


_CHECKSUM, _NONE_YET = b"robust_crc32", b"00000000"
"""Key and initial value of the checksum in the metadata of a file. Parquet's checksums cover only
pages: one flipped bit in the metadata can truncate a column without an error."""


def write_rows(path: Path, rows: Sequence[dict[str, object]], schema: pa.Schema) -> None:
    """Writes `rows` durably as one Parquet file; equal rows result in equal bytes."""
    table = pa.Table.from_pylist(list(rows), schema=schema)
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({_CHECKSUM: _NONE_YET}), buffer, **WRITTEN)
    write_bytes(path, _with_checksum(buffer.getvalue().to_pybytes()))


def _with_checksum(content: bytes) -> bytes:
    """`content` of a file with the CRC-32 of all bytes, computed with zeros as checksum."""
    place = content.index(_NONE_YET, content.rindex(_CHECKSUM))
    checksum = f"{zlib.crc32(content):08x}".encode()
    return content[:place] + checksum + content[place + len(checksum) :]


def fits_checksum(path: Path) -> bool:
    """Whether the checksum of the file is correct; True for files of old versions without one."""
    return _fits(path.read_bytes())


def _fits(content: bytes) -> bool:
    key = content.rfind(_CHECKSUM)
    if key < 0:
        return True
    place = key + len(_CHECKSUM) + 2  # two bytes: type and length of the value
    return (
        _with_checksum(content[:place] + _NONE_YET + content[place + len(_NONE_YET) :]) == content
    )


def rows_in(path: Path) -> int | None:
    """Number of rows in the file `path`; None if the file is missing or damaged."""
    try:
        content = path.read_bytes()
        if _CHECKSUM in content and _fits(content):  # no byte changed: rows need not be decoded
            with pq.ParquetFile(pa.BufferReader(content)) as file:
                return int(file.metadata.num_rows)
        return len(_contents(path))
    except (OSError, pa.ArrowException):
        return None


def _contents(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one file, after a check of the checksum."""
    content = path.read_bytes()
    if not _fits(content):
        raise pa.ArrowInvalid("its checksum does not match")
    # `pq.read_table` creates a data set for each file, which takes eight times as long.
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        return file.read(columns, use_threads=False)


def _file_name(block: int) -> str:
    return f"block-{block:06d}.parquet"


def _chosen(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    return schema if columns is None else pa.schema([schema.field(name) for name in columns])


def _read(folder: Path, schema: pa.Schema, pattern: str = _BLOCKS) -> pd.DataFrame:
    names = sorted(file.name for file in folder.glob(pattern))  # sorting paths is slower
    with ThreadPoolExecutor(READERS) as readers:
        tables = list(readers.map(lambda name: _read_file(folder / name, schema), names))
    table = pa.concat_tables(tables or [schema.empty_table()])
    unused = [n for n in _OF_CLASSES if n in schema.names and table[n].null_count == len(table)]
    table = table.drop_columns(unused)
    rows: pd.DataFrame = table.to_pandas(types_mapper={_LISTS: pd.ArrowDtype(_LISTS)}.get)
    return rows


def _read_file(path: Path, schema: pa.Schema) -> pa.Table:
    """The rows of one file; a column of `schema` that it lacks is null."""
    try:
        table = _contents(path, schema.names)  # only the columns that the file has
        if table.schema.equals(schema):
            return table
        for field in schema:
            if field.name not in table.column_names:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        return table.select(schema.names).cast(schema)
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"`{path}` is damaged.",
            f"Its rows cannot be read: {error}.",
            "Remove this file and repeat `robust eval`: only this block is computed again.",
        ) from error
