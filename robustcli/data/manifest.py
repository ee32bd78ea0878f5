"""A manifest: a table that names image files and the class of each."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.data.listing import Entry, stable
from robustcli.data.part_names import parts_in
from robustcli.data.tables import Column, read_columns

PATH = Column("path", ("image", "file", "filename", "file-name", "image-path"))
LABEL = Column("label", ("class", "wnid", "target", "class-name"))
_SPLIT = Column("split", required=False)


@dataclass(frozen=True)
class Labelled:
    """An image file, the label that a folder, a file name or a table gives it, and its part.

    `split` is `train`, `val` or `test` where the data says it, else None.
    """

    entry: Entry
    label: str
    split: str | None = None


def read_manifest(path: Path) -> list[Labelled]:
    """The images that the table at `path` lists, with their labels.

    Args:
        path: A CSV, TSV or Parquet file with the columns `path`, `label` and perhaps `split`; a
            path counts from the folder of the table.

    Raises:
        UsageError: The table cannot be read, is empty, names a file twice or one that is not there.
    """
    columns = read_columns(path, (PATH, LABEL, _SPLIT))
    if not columns["path"]:
        raise UsageError(
            f"`{path}` lists no image.", "It has a header only.", "Add one line for each image."
        )
    parts = parts_in(path, columns) or [None] * len(columns["path"])
    rows = zip(columns["path"], columns["label"], parts, strict=True)
    labelled = [Labelled(_entry(path.parent, name), label, part) for name, label, part in rows]
    _check_repeated(path, labelled)
    _check_missing(path, labelled)
    return labelled


def _entry(base: Path, name: str) -> Entry:
    inside = os.path.normpath(name.replace("\\", "/") if os.sep == "/" else name)
    return Entry(stable(Path(inside).as_posix()), base / inside)


def _check_repeated(path: Path, labelled: list[Labelled]) -> None:
    twice, times = Counter(one.entry.relative for one in labelled).most_common(1)[0]
    if times > 1:
        raise UsageError(
            f"`{path}` lists `{twice}` {times} times.",
            "Every image counts once, so its path may stand there once.",
            "Remove the repeated lines.",
        )


def _check_missing(path: Path, labelled: list[Labelled]) -> None:
    missing = [one.entry for one in labelled if not one.entry.path.is_file()]
    if missing:
        raise UsageError(
            f"`{path}` lists {len(missing)} of {len(labelled)} files that are not there.",
            f"The first is `{missing[0].path}`.",
            f"Paths count from the folder of the table, `{path.parent}`: correct them or move it.",
        )
