"""Reads small tables that users write: CSV, TSV and Parquet files.

Text files can be UTF-8 or UTF-16, separated by commas, semicolons, tabs or bars, with or without a
first line `sep=;` as written by spreadsheets. Each separator is tried on the header; if none fits,
the caller can recognise the columns by their cells.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from robustcli.core.errors import UsageError, shortened_text
from robustcli.core.io import check_readable
from robustcli.core.names import canonical

DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = frozenset({*DELIMITERS, ".parquet"})
Say: TypeAlias = Callable[[str], None]
"""Receives notes for the user, for example about deviations from a documented format."""
Headless: TypeAlias = Callable[[Sequence[Sequence[str]]], Mapping[str, int] | None]
"""Maps the rows of a table without header to the column index by column name; None if the cells do
not identify the columns."""
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SEP_LINE = re.compile(r'"?sep=(\\t|.)"?\s*', re.IGNORECASE)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with a byte order mark"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_SHOWN_LINES, _SHOWN_WIDTH, _SHOWN_COLUMNS = 3, 100, 30


def ignore_note(text: str) -> None:
    """Ignores a note; a `Say` for callers without announcements."""


@dataclass(frozen=True)
class Column:
    """An expected column of a table.

    Args:
        name: Name of the column.
        aliases: Further accepted names.
        required: Whether a table without this column is an error.
        remaining: Whether the column may have any name if it is the only unidentified column.
    """

    name: str
    aliases: tuple[str, ...] = ()
    required: bool = True
    remaining: bool = False

    def find(self, header: Iterable[str]) -> str | None:
        """The name of this column as spelled in `header`; None if it is missing."""
        spelled = {canonical(heading): heading for heading in header}
        return next((spelled[n] for n in (self.name, *self.aliases) if n in spelled), None)


class _Reading(NamedTuple):
    """All rows of a text table, column indices by name, the first row after the header, notes."""

    rows: list[list[str]]
    indices: Mapping[str, int]
    first: int
    notes: list[str]


def read_columns(
    path: Path,
    columns: Sequence[Column],
    *,
    headless: Headless | None = None,
    say: Say = ignore_note,
    keep_spaces: bool = False,
) -> dict[str, list[str]]:
    """The cells of the requested columns by `Column.name`, without missing optional columns.

    Args:
        path: A CSV, TSV or Parquet file.
        columns: The requested columns.
        headless: Recognises the columns of a text table without header.
        say: Receives a note on unusual separators, encodings or headers.
        keep_spaces: Whether spaces around a cell belong to it, in a file that no person wrote.

    Raises:
        UsageError: The file cannot be read, lacks a required column, or has an empty cell.
    """
    try:
        check_readable(path)  # opening a pipe would block
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    if path.suffix.lower() == ".parquet":
        return _checked(path, _read_parquet(path, columns))
    text, encoding = _decoded(path)
    reading = _read(path, text, columns, headless, keep_spaces=keep_spaces)
    notes = [note for note in (encoding, *reading.notes) if note]
    if notes:
        say(f"Read `{path}` as {', '.join(notes)}.")
    width = len(reading.rows[0])
    for number, row in enumerate(reading.rows):
        if len(row) != width:
            raise UsageError(
                f"`{path}` has rows of different lengths.",
                f"Its header has {width} columns, row {number} has {len(row)}.",
                'Put cells that contain the separator in double quotes ("a, b").',
            )
    rows = reading.rows[reading.first :]
    if reading.first:
        headings = [canonical(heading) for heading in reading.rows[0]]
        for name, index in reading.indices.items():
            twins = [i for i, heading in enumerate(headings) if heading == headings[index]]
            if any(len({row[i].strip() for i in twins}) > 1 for row in rows):
                raise _twice(path, name, reading.rows[0][index])
    values = {name: [row[i] for row in rows] for name, i in reading.indices.items()}
    if not keep_spaces:
        values = {name: [cell.strip() for cell in cells] for name, cells in values.items()}
    return _checked(path, values)


def read_text(path: Path, say: Say = ignore_note) -> str:
    """The text of the file at `path`, UTF-8 or UTF-16, without a byte order mark.

    Raises:
        UsageError: The file is missing, or its encoding is not supported.
    """
    text, encoding = _decoded(path)
    if encoding:
        say(f"Read `{path}` as {encoding}.")
    return text


def _decoded(path: Path) -> tuple[str, str]:
    """The text, and a description of its encoding, which is empty for plain UTF-8."""
    try:
        raw = path.read_bytes()
        marks = (mark for mark in _BYTE_ORDER_MARKS if raw.startswith(mark[0]))
        _, codec, description = next(marks, (b"", *_encoding_without_mark(raw)))
        return raw.decode(codec), description
    except UnicodeDecodeError as error:
        raise UsageError(
            f"`{path}` is not a text file.",
            f"Expected UTF-8, but byte {error.start} is not.",
            "Save it as UTF-8 (in a spreadsheet: `CSV UTF-8`) and repeat the command.",
        ) from error
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error


def _encoding_without_mark(raw: bytes) -> tuple[str, str]:
    """Recognises UTF-16 by the zeros in every second byte of ASCII characters."""
    start = raw[:64]
    if len(start) > 3 and not any(start[1::2]) and all(start[::2]):
        return "utf-16-le", "UTF-16"
    if len(start) > 3 and not any(start[::2]) and all(start[1::2]):
        return "utf-16-be", "UTF-16"
    return "utf-8", ""


def _read(
    path: Path, text: str, columns: Sequence[Column], headless: Headless | None, *,
    keep_spaces: bool,
) -> _Reading:  # fmt: skip
    usual = DELIMITERS.get(path.suffix.lower(), ",")
    separators, notes = [usual, *(s for s in _SEPARATORS if s != usual)], []
    first_line, _, remaining_text = text.partition("\n")
    sep_line = _SEP_LINE.fullmatch(first_line.strip("\r"))
    if sep_line:
        separators, text = [sep_line[1].replace("\\t", "\t")], remaining_text
        notes = [f"a table with a first line `{first_line.strip()}`"]
    tables = [(separator, _rows(path, text, separator, keep_spaces)) for separator in separators]
    separated = {
        s: [] if s == usual or sep_line else [f"a table separated by {_SEPARATORS[s]}"]
        for s in separators
    }
    has_some_columns = False
    for any_name in (False, True):  # known names first, then one column with any name
        for separator, rows in tables:
            indices, remaining = _indices(rows[0] if rows else [], columns, remaining=any_name)
            has_some_columns = has_some_columns or bool(indices)
            if indices and all(c.name in indices for c in columns if c.required):
                notes += separated[separator]
                if remaining:
                    heading = rows[0][indices[remaining]].strip()
                    notes.append(f"a table whose column `{heading}` is used as the {remaining}")
                return _Reading(rows, indices, 1, notes)
    for separator, rows in tables if headless is not None and not has_some_columns else []:
        is_even = rows and len({len(row) for row in rows}) == 1
        by_content = headless(rows) if headless is not None and is_even else None
        if by_content is not None:
            order = ", ".join(
                f"`{name}`" for name in sorted(by_content, key=by_content.__getitem__)
            )
            notes += separated[separator]
            notes.append(
                f"a table without a header, whose columns are {order} according to their contents"
            )
            return _Reading(rows, by_content, 0, notes)
    if not any(column.required for column in columns):
        return _Reading(tables[0][1], {}, 1, notes)
    raise _missing_column_error(path, text, tables, columns)


def _rows(path: Path, text: str, separator: str, keep_spaces: bool) -> list[list[str]]:
    source = io.StringIO(text, newline="")
    try:
        rows = list(csv.reader(source, delimiter=separator, skipinitialspace=not keep_spaces))
    except csv.Error as error:
        raise _unreadable(path, f"It is not a table: {error}.") from error
    return [row for row in rows if len(row) == 1 or any(cell.strip() for cell in row)]


def _indices(
    header: Sequence[str], columns: Sequence[Column], *, remaining: bool
) -> tuple[dict[str, int], str]:
    """Column indices by name, and the column that has another name in the header, or ""."""
    indices = {c.name: header.index(h) for c in columns if (h := c.find(header)) is not None}
    missing = [c for c in columns if c.required and c.name not in indices]
    unused = [i for i, h in enumerate(header) if i not in indices.values() and h.strip()]
    if remaining and indices and len(missing) == 1 == len(unused) and missing[0].remaining:
        return indices | {missing[0].name: unused[0]}, missing[0].name
    return indices, ""


def _missing_column_error(
    path: Path, text: str, tables: Sequence[tuple[str, list[list[str]]]],
    columns: Sequence[Column],
) -> UsageError:  # fmt: skip
    """The error for missing columns, for the separator that finds the most columns."""

    def fit(table: tuple[str, list[list[str]]]) -> tuple[int, int]:
        header = table[1][0] if table[1] else []
        return len(_indices(header, columns, remaining=False)[0]), len(header)

    separator, rows = max(tables, key=fit)
    header = rows[0] if rows else []
    error = _no_column(path, header, columns)
    assert error is not None, "a table with all its columns is read"
    example = separator.join(column.name for column in columns if column.required)
    lines = [line[:_SHOWN_WIDTH] for line in text.splitlines() if line.strip()][:_SHOWN_LINES]
    shown = "".join(f"\n  {line}" for line in lines)
    begins = f" The file begins:{shown}" if lines else ""
    return UsageError(error.what, error.why, f"{error.todo} For example `{example}`.{begins}")


def _read_parquet(path: Path, columns: Sequence[Column]) -> dict[str, list[str]]:
    import pyarrow as pa  # takes 0.1 s, and only Parquet needs it
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        header = file.schema_arrow.names
        error = _no_column(path, header, columns)
        if error is not None:
            raise error
        headings = {c.name: h for c in columns if (h := c.find(header)) is not None}
        for name, heading in headings.items():
            if header.count(heading) > 1:
                raise _twice(path, name, heading)
        table = file.read(columns=list(headings.values()))
    except (pa.ArrowException, OSError) as cause:
        raise _unreadable(path, str(cause).splitlines()[0]) from cause
    values = {name: table.column(heading).to_pylist() for name, heading in headings.items()}
    return {n: ["" if v is None else str(v) for v in column] for n, column in values.items()}


def _no_column(path: Path, header: Sequence[str], columns: Sequence[Column]) -> UsageError | None:
    """The error about the first missing column; None if all exist."""
    missing = next((c for c in columns if c.required and c.find(header) is None), None)
    if missing is None:
        return None
    aliases = f" (or {', '.join(f'`{a}`' for a in missing.aliases)})" if missing.aliases else ""
    return UsageError(
        f"`{path}` has no column `{missing.name}`.",
        f"Its columns are {_listed(header) or 'none'}.",
        f"The first line must name a column `{missing.name}`{aliases}.",
    )


def _twice(path: Path, name: str, heading: str) -> UsageError:
    return UsageError(
        f"`{path}` has several columns `{shortened_text(heading.strip(), _SHOWN_WIDTH)}`.",
        f"Their cells differ, and one of them is needed as the {name}.",
        "Remove or rename the others.",
    )


def _listed(header: Sequence[str]) -> str:
    names = ", ".join(f"`{shortened_text(name, _SHOWN_WIDTH)}`" for name in header[:_SHOWN_COLUMNS])
    return names + (f" and {len(header) - _SHOWN_COLUMNS} more" if header[_SHOWN_COLUMNS:] else "")


def _checked(path: Path, columns: dict[str, list[str]]) -> dict[str, list[str]]:
    for name, values in columns.items():
        if "" in values:
            raise UsageError(
                f"`{path}` has an empty cell.",
                f"Column `{name}`, row {values.index('') + 1} below the header, is empty.",
                "Fill it in or remove the row.",
            )
    return columns


def _unreadable(path: Path, reason: str) -> UsageError:
    return UsageError(f"Cannot read `{path}`.", reason, "Check the path and the file.")
