"""A labels file: which class each image of a flat folder shows (ImageNet's `val/`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.data.listing import Entry, stable
from robustcli.data.manifest import LABEL, PATH, Labelled
from robustcli.data.tables import (
    TABLE_SUFFIXES,
    Column,
    Headless,
    Say,
    read_columns,
    read_text,
    unheard,
)

# Kaggle's LOC_val_solution.csv: `ImageId,PredictionString`, the string beginning with the wnid.
_NAME = Column("path", (*PATH.aliases, "name"))
_LABEL = Column("label", (*LABEL.aliases, "predictionstring"), remaining=True)
_WNID_AND_BOX = re.compile(r"(n\d{8})\s+\d")


def read_labels(path: Path, entries: Sequence[Entry], say: Say = unheard) -> list[Labelled]:
    """Each image of `entries` with the label that the file at `path` gives it.

    Args:
        path: Lines `FILE LABEL`; or a table (CSV, TSV, Parquet); or one label a line, in the order
            of the sorted file names. Files are named by path, by name, or by name without suffix;
            files that are not in `entries` do not matter.
        entries: The images that were found.
        say: Hears what was read otherwise than as documented.

    Raises:
        UsageError: The file cannot be read, or leaves an image without a label.
    """
    by_file: Mapping[str, str]
    if path.suffix.lower() in TABLE_SUFFIXES:
        by_file = _from_table(path, entries, say)
    else:
        lines = [line.strip() for line in read_text(path, say).splitlines() if line.strip()]
        by_file = _pairs(lines)
        if not any(_label(entry, by_file) for entry in entries):
            by_file = _table_in_a_text(path, entries, say)
        if not any(_label(entry, by_file) for entry in entries):
            return _in_file_order(path, lines, entries)
    labels = [_label(entry, by_file) for entry in entries]
    missing = [entry for entry, label in zip(entries, labels, strict=True) if not label]
    if missing:
        raise UsageError(
            f"`{path}` has no label for {len(missing)} of {len(entries)} images.",
            f"The first is `{min(entry.relative for entry in missing)}`.",
            "Add lines for them, or take the files out of the folder.",
        )
    return [Labelled(*pair) for pair in zip(entries, labels, strict=True)]


def _label(entry: Entry, by_file: Mapping[str, str]) -> str:
    stem = entry.file_name.rpartition(".")[0]
    names = (entry.relative, entry.file_name, stem)
    return next((by_file[name] for name in names if name in by_file), "")


def _pairs(lines: Sequence[str]) -> dict[str, str]:
    split = [line.split(maxsplit=1) for line in lines]
    return {stable(pair[0]): pair[1] for pair in split if len(pair) == 2}


def _from_table(path: Path, entries: Sequence[Entry], say: Say) -> dict[str, str]:
    columns = read_columns(path, (_NAME, _LABEL), headless=_by_content(entries), say=say)
    labels = [_without_boxes(label) for label in columns["label"]]
    return {stable(name): label for name, label in zip(columns["path"], labels, strict=True)}


def _table_in_a_text(path: Path, entries: Sequence[Entry], say: Say) -> Mapping[str, str]:
    """Of a file that is not named like a table, what it says as one; nothing where it is none."""
    try:
        return _from_table(path, entries, say)
    except UsageError:
        return {}


def _by_content(entries: Sequence[Entry]) -> Headless:
    """Tells two columns without a header: one names images, the other none."""
    stems = {entry.file_name.rpartition(".")[0] for entry in entries}
    names = {*stems, *(e.relative for e in entries), *(e.file_name for e in entries)}

    def columns(rows: Sequence[Sequence[str]]) -> dict[str, int] | None:
        files = [i for i in range(len(rows[0])) if any(stable(r[i].strip()) in names for r in rows)]
        if len(rows[0]) != 2 or len(files) != 1:
            return None
        return {_NAME.name: files[0], _LABEL.name: 1 - files[0]}

    return columns


def _without_boxes(label: str) -> str:
    """The wnid of Kaggle's `n01978287 240 170 260 240`, any other label as it is."""
    boxes = _WNID_AND_BOX.match(label)
    return boxes[1] if boxes else label


def _in_file_order(path: Path, lines: Sequence[str], entries: Sequence[Entry]) -> list[Labelled]:
    if len(lines) != len(entries):
        raise UsageError(
            f"`{path}` does not fit the images.",
            f"It names none of the {len(entries)} files, so it must hold one label a line in the "
            f"order of the sorted file names; but it has {len(lines)} lines.",
            "Use lines `FILE LABEL`, or a CSV with the columns `path` and `label`.",
        )
    ordered = sorted(entries, key=lambda entry: entry.relative)
    return [Labelled(*pair) for pair in zip(ordered, lines, strict=True)]
