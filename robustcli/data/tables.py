"""Small tables that users write: CSV, TSV and Parquet files.

Text is read as spreadsheets write it: UTF-8 or UTF-16, separated by commas, semicolons, tabs or
bars, perhaps with a first line `sep=;`. A header is looked for with each separator; where none
fits, the caller may recognise the columns by their cells.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from robustcli.core.errors import UsageError
from robustcli.core.names import canonical

DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = frozenset({*DELIMITERS, ".parquet"})
Say: TypeAlias = Callable[[str], None]
"""Gets a line for the user about each thing that was read otherwise than as documented."""
Headless: TypeAlias = Callable[[Sequence[Sequence[str]]], Mapping[str, int] | None]
"""Of the rows of a table without a header: the number of each column by its name; None where the
cells do not show which column is which."""
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SEP_LINE = re.compile(r'"?sep=(\\t|.)"?\s*', re.IGNORECASE)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with a byte order mark"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_SHOWN_LINES, _SHOWN_WIDTH = 3, 100


def unheard(text: str) -> None:
    """A `Say` to which nobody listens."""


@dataclass(frozen=True)
class Column:
    """A column to look for.

    Args:
        name: Its name.
        aliases: Other names it goes by.
        required: Whether it must be there.
        remaining: Whether it may have any name, where it is the only column that is left.
    """

    name: str
    aliases: tuple[str, ...] = ()
    required: bool = True
    remaining: bool = False

    def find(self, header: Iterable[str]) -> str | None:
        """The heading in `header` that means this column, spelled as there."""
        spelled = {canonical(heading): heading for heading in header}
        return next((spelled[n] for n in (self.name, *self.aliases) if n in spelled), None)


@dataclass(frozen=True)
class _Reading:
    """One way to read a text: its rows, and the place of each column that was found.

    `first` is the row after the header; `words` say what is unusual about it.
    """

    rows: list[list[str]]
    places: Mapping[str, int]
    first: int
    words: tuple[str, ...]


def read_columns(
    path: Path, columns: Sequence[Column], *, headless: Headless | None = None, say: Say = unheard
) -> dict[str, list[str]]:
    """The wanted columns of a table, by `Column.name`; optional ones may be missing.

    Args:
        path: A Parquet file or a text.
        columns: What to look for. Other columns are not read.
        headless: Recognises the columns of a text without a header.
        say: Hears what was found instead of commas (or tabs, of a TSV), UTF-8 and a header.

    Raises:
        UsageError: The file cannot be read, lacks a column, or has an empty cell in one.
    """
    if path.suffix.lower() == ".parquet":
        return _checked(path, _read_parquet(path, columns))
    text, encoding = _decoded(path)
    reading = _read(path, text, columns, headless)
    words = [word for word in (encoding, *reading.words) if word]
    if words:
        say(f"Read `{path}` as {', '.join(words)}.")
    rows = _even(path, reading)
    return _checked(path, {n: [row[place].strip() for row in rows]
                           for n, place in reading.places.items()})  # fmt: skip


def read_text(path: Path, say: Say = unheard) -> str:
    """The text of the file at `path`, UTF-8 or UTF-16, without a byte order mark.

    Raises:
        UsageError: There is no such file, or it is not such text.
    """
    text, encoding = _decoded(path)
    if encoding:
        say(f"Read `{path}` as {encoding}.")
    return text


def _decoded(path: Path) -> tuple[str, str]:
    """The text, and the encoding in words where it is not plain UTF-8."""
    try:
        raw = path.read_bytes()
        marked = (m for m in _BYTE_ORDER_MARKS if raw.startswith(m[0]))
        _, codec, words = next(marked, (b"", *_without_mark(raw)))
        return raw.decode(codec), words
    except UnicodeDecodeError as error:
        raise UsageError(
            f"`{path}` is not a text file.",
            f"Expected UTF-8, but byte {error.start} is not.",
            "Save it as UTF-8 (in a spreadsheet: `CSV UTF-8`) and repeat the command.",
        ) from error
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error


def _without_mark(raw: bytes) -> tuple[str, str]:
    """UTF-16 is known by the zeros in every second byte of its first, ASCII, characters."""
    start = raw[:64]
    if len(start) > 3 and not any(start[1::2]) and all(start[::2]):
        return "utf-16-le", "UTF-16"
    if len(start) > 3 and not any(start[::2]) and all(start[1::2]):
        return "utf-16-be", "UTF-16"
    return "utf-8", ""


def _read(path: Path, text: str, columns: Sequence[Column], headless: Headless | None) -> _Reading:
    usual = DELIMITERS.get(path.suffix.lower(), ",")
    separators, words = [usual, *(s for s in _SEPARATORS if s != usual)], []
    first, _, rest = text.partition("\n")
    sep_line = _SEP_LINE.fullmatch(first.strip("\r"))
    if sep_line:
        separators, text = [sep_line[1].replace("\\t", "\t")], rest
        words = [f"a table with a first line `{first.strip()}`"]
    tables = [(separator, _rows(path, text, separator)) for separator in separators]
    partly = False
    for named in (False, True):  # columns under their own names, before one under any name
        for separator, rows in tables:
            places, remaining = _places(rows[0] if rows else [], columns, remaining=named)
            partly = partly or bool(places)
            if places and all(c.name in places for c in columns if c.required):
                how = [*words, *_separated(separator, usual, sep_line)]
                if remaining:
                    heading = rows[0][places[remaining]].strip()
                    how.append(f"a table whose column `{heading}` is the {remaining}")
                return _Reading(rows, places, 1, tuple(how))
    for separator, rows in tables if headless is not None and not partly else []:
        even = rows and len({len(row) for row in rows}) == 1
        found = headless(rows) if headless is not None and even else None
        if found is not None:
            order = ", ".join(f"`{n}`" for n in sorted(found, key=lambda n: found[n]))
            how = [*words, *_separated(separator, usual, sep_line), "a table without a header: "
                   f"its columns are {order}, by what they hold"]  # fmt: skip
            return _Reading(rows, found, 0, tuple(how))
    if not any(column.required for column in columns):
        return _Reading(tables[0][1], {}, 1, tuple(words))
    raise _lacking(path, text, tables, columns)


def _separated(separator: str, usual: str, sep_line: object) -> list[str]:
    if separator == usual or sep_line:
        return []
    return [f"a table separated by {_SEPARATORS[separator]}"]


def _rows(path: Path, text: str, separator: str) -> list[list[str]]:
    source = io.StringIO(text, newline="")
    try:
        rows = list(csv.reader(source, delimiter=separator, skipinitialspace=True))
    except csv.Error as error:
        raise _unreadable(path, f"It is no table: {error}.") from error
    return [row for row in rows if len(row) == 1 or any(cell.strip() for cell in row)]


def _places(
    header: Sequence[str], columns: Sequence[Column], *, remaining: bool
) -> tuple[dict[str, int], str]:
    """The place of each column that the header names, and the column that has another name."""
    places = {c.name: header.index(h) for c in columns if (h := c.find(header)) is not None}
    lacking = [c for c in columns if c.required and c.name not in places]
    left = [i for i, h in enumerate(header) if i not in places.values() and h.strip()]
    if remaining and places and len(lacking) == 1 == len(left) and lacking[0].remaining:
        return places | {lacking[0].name: left[0]}, lacking[0].name
    return places, ""


def _even(path: Path, reading: _Reading) -> list[list[str]]:
    rows, width = reading.rows, len(reading.rows[0])
    uneven = next((i for i, row in enumerate(rows) if len(row) != width), None)
    if uneven is not None:
        raise UsageError(
            f"`{path}` is not an even table.",
            f"Its header has {width} columns, row {uneven} has {len(rows[uneven])}.",
            'Put cells that hold the separator in double quotes ("a, b").',
        )
    return rows[reading.first :]


def _lacking(
    path: Path, text: str, tables: Sequence[tuple[str, list[list[str]]]],
    columns: Sequence[Column],
) -> UsageError:  # fmt: skip
    """The error where no separator gives all columns, worded for the one that gives the most."""

    def fit(table: tuple[str, list[list[str]]]) -> tuple[int, int]:
        header = table[1][0] if table[1] else []
        return len(_places(header, columns, remaining=False)[0]), len(header)

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
    error = _no_column(path, header, columns)
    if error is not None:
        raise error
    found = {column.name: column.find(header) for column in columns}
    return {name: heading for name, heading in found.items() if heading is not None}


def _no_column(path: Path, header: Sequence[str], columns: Sequence[Column]) -> UsageError | None:
    """The error about the first column that is lacking; None where none is."""
    lacking = next((c for c in columns if c.required and c.find(header) is None), None)
    if lacking is None:
        return None
    also = f" (or {', '.join(f'`{a}`' for a in lacking.aliases)})" if lacking.aliases else ""
    return UsageError(
        f"`{path}` has no column `{lacking.name}`.",
        f"Its columns are {', '.join(f'`{h}`' for h in header) or 'none'}.",
        f"The first line must name a column `{lacking.name}`{also}.",
    )


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
