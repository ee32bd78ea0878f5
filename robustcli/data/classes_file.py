"""A classes file: which classes there are, in the order of their indices."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.data.tables import TABLE_SUFFIXES, Column, Say, read_columns, read_text, unheard

_WNID_AND_NAME = re.compile(r"(n\d{8})(?:[\s,]+(.+))?")
_WNID = re.compile(r"n\d{8}")
_COLUMNS = (
    Column("name", ("class", "label", "class-name"), required=False),
    Column("id", ("wnid", "synset"), required=False),
    Column("index", ("target",), required=False),
)


@dataclass(frozen=True)
class ClassLine:
    """One class: its id (a wnid, or the name where there is none) and its name."""

    id: str
    name: str


def read_classes(path: Path, say: Say = unheard) -> tuple[ClassLine, ...]:
    """The classes in `path`; position = class index.

    Args:
        path: A text file of one class a line (`NAME`, or `WNID NAME`), or a CSV, TSV or Parquet
            table with a column `name` or `id` (also `wnid`), and perhaps `index` (0, 1, 2, ...).
        say: Hears what was read otherwise than as documented.

    Raises:
        UsageError: The file cannot be read, is empty, or names a class twice.
    """
    is_table = path.suffix.lower() in TABLE_SUFFIXES
    classes = _from_table(path, say) if is_table else _from_lines(read_text(path, say))
    if not classes:
        raise UsageError(
            f"`{path}` names no class.", "It is empty.", "Write one class a line, in index order."
        )
    twice, times = Counter(line.id for line in classes).most_common(1)[0]
    if times > 1:
        raise UsageError(
            f"`{path}` names the class `{twice}` {times} times.",
            "Every class must be listed once: its position is its index.",
            "Remove the repetition, or give the classes different ids (column `id`).",
        )
    return tuple(classes)


def _from_lines(text: str) -> list[ClassLine]:
    classes = []
    for line in filter(None, map(str.strip, text.splitlines())):
        wnid = _WNID_AND_NAME.fullmatch(line)
        classes.append(ClassLine(wnid[1], wnid[2] or wnid[1]) if wnid else ClassLine(line, line))
    return classes


def _from_table(path: Path, say: Say) -> list[ClassLine]:
    columns = read_columns(path, _COLUMNS, headless=_by_content, say=say)
    names = columns.get("name") or columns.get("id")
    if names is None:
        raise UsageError(
            f"`{path}` has no column `name`.",
            "A table of classes has a column `name` or `id` (also `wnid`).",
            "Add a first line such as `index,id,name`.",
        )
    ids = columns.get("id") or names
    classes = [ClassLine(*pair) for pair in zip(ids, names, strict=True)]
    return _in_index_order(path, columns["index"], classes) if "index" in columns else classes


def _by_content(rows: Sequence[Sequence[str]]) -> dict[str, int] | None:
    """The two columns of a table without a header: indices or wnids, and the names."""
    if len(rows[0]) != 2:
        return None
    numbers = sorted(map(str, range(len(rows))))
    found = {}
    for place in (0, 1):
        cells = [row[place].strip() for row in rows]
        if sorted(cells) == numbers:
            found["index"] = place
        elif all(_WNID.fullmatch(cell) for cell in cells):
            found["id"] = place
        else:
            found["name"] = place
    return found if len(found) == 2 else None


def _in_index_order(path: Path, index: list[str], classes: list[ClassLine]) -> list[ClassLine]:
    if sorted(index) != sorted(map(str, range(len(classes)))):
        raise UsageError(
            f"`{path}` does not number its {len(classes)} classes from 0 to {len(classes) - 1}.",
            "Column `index` must hold each of these numbers once.",
            "Correct the numbers, or remove the column: the order of the rows counts then.",
        )
    return [
        one for _, one in sorted(zip(map(int, index), classes, strict=True), key=lambda p: p[0])
    ]
