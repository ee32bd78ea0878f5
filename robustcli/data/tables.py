"""Small tables that users write: CSV, TSV and Parquet files with a header."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.core.names import canonical

DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = frozenset({*DELIMITERS, ".parquet"})


@dataclass(frozen=True)
class Column:
    """A column to look for: its name, other names it goes by, and whether it must be there."""

    name: str
    aliases: tuple[str, ...] = ()
    required: bool = True

    def find(self, header: Iterable[str]) -> str | None:
        """The heading in `header` that means this column, spelled as there."""
        spelled = {canonical(heading): heading for heading in header}
        return next((spelled[n] for n in (self.name, *self.aliases) if n in spelled), None)


def read_columns(path: Path, columns: Sequence[Column]) -> dict[str, list[str]]:
    """The wanted columns of a table, by `Column.name`; optional ones may be missing.

    Args:
        path: A CSV, TSV (UTF-8, with a header) or Parquet file.
        columns: What to look for. Other columns are not read.

    Raises:
        UsageError: The file cannot be read, lacks a column, or has an empty cell in one.
    """
    if path.suffix.lower() == ".parquet":
        return _checked(path, _read_parquet(path, columns))
    rows = _rows(path, DELIMITERS[path.suffix.lower()])
    header = rows[0] if rows else []
    found = _found(path, header, columns)
    return _checked(
        path, {n: [row[header.index(h)].strip() for row in rows[1:]] for n, h in found.items()}
    )


def read_text(path: Path) -> str:
    """The text of the UTF-8 file at `path`, without a byte order mark.

    Raises:
        UsageError: There is no such file, or it is not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"`{path}` is not a text file.",
            f"Expected UTF-8, but byte {error.start} is not.",
            "Save it as UTF-8 and repeat the command.",
        ) from error
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error


def _rows(path: Path, delimiter: str) -> list[list[str]]:
    lines = read_text(path).splitlines()
    rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
    uneven = next((i for i, row in enumerate(rows) if len(row) != len(rows[0])), None)
    if uneven is not None:
        raise UsageError(
            f"`{path}` is not an even table.",
            f"Its header has {len(rows[0])} columns, row {uneven} has {len(rows[uneven])}.",
            'Put cells that hold the separator in double quotes ("a, b").',
        )
    return rows


def _read_parquet(path: Path, columns: Sequence[Column]) -> dict[str, list[str]]:
    # Imported here because it takes 0.1 s that a CSV or a folder of photos does not need.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        found = _found(path, file.schema_arrow.names, columns)
        table = file.read(columns=list(found.values()))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, str(error).splitlines()[0]) from error
    values = {name: table.column(heading).to_pylist() for name, heading in found.items()}
    return {n: ["" if v is None else str(v) for v in column] for n, column in values.items()}


def _found(path: Path, header: Sequence[str], columns: Sequence[Column]) -> dict[str, str]:
    found = {column.name: column.find(header) for column in columns}
    lacking = next((c for c in columns if c.required and found[c.name] is None), None)
    if lacking is not None:
        also = f" (or {', '.join(f'`{a}`' for a in lacking.aliases)})" if lacking.aliases else ""
        raise UsageError(
            f"`{path}` has no column `{lacking.name}`.",
            f"Its columns are {', '.join(f'`{h}`' for h in header) or 'none'}.",
            f"The first line must name a column `{lacking.name}`{also}.",
        )
    return {name: heading for name, heading in found.items() if heading is not None}


def _checked(path: Path, columns: dict[str, list[str]]) -> dict[str, list[str]]:
    for name, values in columns.items():
        if "" in values:
            raise UsageError(
                f"`{path}` has an empty cell.",
                f"Column `{name}`, row {values.index('') + 1} below the header, holds nothing.",
                "Fill it in or remove the row.",
            )
    return columns


def _unreadable(path: Path, reason: str) -> UsageError:
    return UsageError(f"Cannot read `{path}`.", reason, "Check the path and the file.")
