"""A manifest: a table that names image files and the class of each."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from robustcli.core.errors import UsageError
from robustcli.data.listing import IMAGE_SUFFIXES, MASK_SUFFIXES, Entry, list_folder, stable
from robustcli.data.tables import (
    TABLE_SUFFIXES,
    Column,
    Headless,
    Say,
    read_columns,
    read_text,
    unheard,
)

# How data sets call their parts: words of folders and of columns to `train`, `val` and `test`.


PART_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

_SHOWN = 5


def parts_in(path: Path, columns: Mapping[str, list[str]]) -> list[str | None] | None:
    """The part of each row of the table at `path`; None where it has no column `split`.

    Raises:
        UsageError: The column holds another word.
    """
    if "split" not in columns:
        return None
    unknown = sorted({value for value in columns["split"] if value.lower() not in PART_NAMES})
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        found = ", ".join(f"`{word}`" for word in unknown[:_SHOWN]) + more
        raise UsageError(
            f"`{path}` names {len(unknown)} unknown splits.",
            f"Column `split` holds {found}; expected `train`, `val` or `test`.",
            "Correct them, or remove the column: the split is then drawn.",
        )
    return [PART_NAMES[value.lower()] for value in columns["split"]]


PATH = Column(
    "path",
    (
        *("image", "file", "filename", "file-name", "image-path", "file-path", "filepath"),
        *("image-id", "imageid", "img", "image-name", "id"),
    ),
)
LABEL = Column("label", ("class", "wnid", "target", "class-name", "label-name"), remaining=True)
_SPLIT = Column("split", required=False)
_TRIED = 100  # rows by which the columns of a table without a header are told


@dataclass(frozen=True)
class Labelled:
    """An image file, the label that a folder, a file name or a table gives it, and its part.

    `split` is `train`, `val` or `test` where the data says it, else None.
    """

    entry: Entry
    label: str
    split: str | None = None


def read_manifest(path: Path, say: Say = unheard) -> list[Labelled]:
    """The images that the table at `path` lists, with their labels.

    Args:
        path: A CSV, TSV or Parquet file with the columns `path`, `label` and perhaps `split`; a
            path counts from the folder of the table.
        say: Hears what was read otherwise than as documented.

    Raises:
        UsageError: The table cannot be read, is empty, names a file twice or one that is not there.
    """
    columns = read_columns(
        path, (PATH, LABEL, _SPLIT), headless=lambda rows: _by_content(path.parent, rows), say=say
    )
    if not columns["path"]:
        raise UsageError(
            f"`{path}` lists no image.", "It has a header only.", "Add one line for each image."
        )
    parts = parts_in(path, columns) or [None] * len(columns["path"])
    entries = entries_named(path, columns["path"], say=say)
    rows = zip(entries, columns["label"], parts, strict=True)
    labelled = [Labelled(*row) for row in rows]
    _check_repeated(path, labelled)
    check_missing(path, entries)
    return labelled


def entries_named(
    table: Path, names: Sequence[str], *, say: Say = unheard,
    suffixes: frozenset[str] = IMAGE_SUFFIXES,
) -> list[Entry]:  # fmt: skip
    """The files that a table names, whether they are there or not.

    Paths count from the folder of the table. A name without ending or folder (`image_id`) stands
    for the one file below that folder which is called so; where there are several, for none.

    Args:
        table: The table.
        names: As it has them.
        say: Hears which files such names stand for.
        suffixes: Of the files that may be meant.
    """
    entries = [_entry(table.parent, name) for name in names]
    missing = [place for place, entry in enumerate(entries) if not entry.path.is_file()]
    if not missing:
        return entries
    known: dict[str, list[Entry]] = defaultdict(list)
    for entry in list_folder(table.parent, suffixes).entries:
        bare = entry.relative[: -len(PurePosixPath(entry.relative).suffix)]
        for spelled in (bare, entry.relative):
            parts = spelled.split("/")
            for first in range(len(parts)):
                known["/".join(parts[first:])].append(entry)
    for place in missing:
        name = entries[place].relative
        meant = {one.relative: one for one in known.get(name, ())}
        exact = [one for one in meant.values() if one.relative.rpartition(".")[0] == name]
        if len(meant) == 1 or len(exact) == 1:
            (entries[place],) = meant.values() if len(meant) == 1 else exact
    resolved = [place for place in missing if entries[place].path.is_file()]
    if len(resolved) == len(missing):
        first = resolved[0]
        say(
            f"`{table}` has {len(resolved)} names that are no paths: each is the one file of that "
            f"name below `{table.parent}`, such as `{names[first]}` = "
            f"`{entries[first].relative}`."
        )
    return entries


def _entry(base: Path, name: str) -> Entry:
    inside = os.path.normpath(name.replace("\\", "/") if os.sep == "/" else name)
    return Entry(stable(Path(inside).as_posix()), base / inside)


def is_named(base: Path, name: str) -> bool:
    """Whether there is a file `name` below `base`, with or without an image's ending."""
    path = _entry(base, name).path
    return path.is_file() or any(
        path.with_name(path.name + suffix).is_file() for suffix in MASK_SUFFIXES if path.name
    )


def _by_content(base: Path, rows: Sequence[Sequence[str]]) -> dict[str, int] | None:
    """The columns of a table without a header: the files, the parts, and one that is left."""
    width, some = len(rows[0]), rows[:_TRIED]
    files = [i for i in range(width) if all(is_named(base, row[i].strip()) for row in some)]
    splits = [i for i in range(width) if all(row[i].strip().lower() in PART_NAMES for row in rows)]
    left = [i for i in range(width) if i not in (*files, *splits)]
    if len(files) != 1 or len(left) != 1 or len(splits) > 1:
        return None
    return {PATH.name: files[0], LABEL.name: left[0]} | ({_SPLIT.name: splits[0]} if splits else {})


def _check_repeated(path: Path, labelled: list[Labelled]) -> None:
    twice, times = Counter(one.entry.relative for one in labelled).most_common(1)[0]
    if times > 1:
        raise UsageError(
            f"`{path}` lists `{twice}` {times} times.",
            "Every image counts once, so its path may stand there once.",
            "Remove the repeated lines.",
        )


def check_missing(path: Path, entries: Sequence[Entry]) -> None:
    """Nothing, if every file of the table at `path` is there.

    Raises:
        UsageError: Some are not.
    """
    missing = [entry for entry in entries if not entry.path.is_file()]
    if missing:
        raise UsageError(
            f"`{path}` lists {len(missing)} of {len(entries)} files that are not there.",
            f"The first is `{missing[0].path}`.",
            f"Paths count from the folder of the table, `{path.parent}`: correct them or move it. "
            "Names without an ending are understood where one image below that folder has them.",
        )


# A labels file: which class each image of a flat folder shows (ImageNet's `val/`).


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
    columns = read_columns(path, (_NAME, _LABEL), headless=_labels_by_content(entries), say=say)
    labels = [_without_boxes(label) for label in columns["label"]]
    return {stable(name): label for name, label in zip(columns["path"], labels, strict=True)}


def _table_in_a_text(path: Path, entries: Sequence[Entry], say: Say) -> Mapping[str, str]:
    """Of a file that is not named like a table, what it says as one; nothing where it is none."""
    try:
        return _from_table(path, entries, say)
    except UsageError:
        return {}


def _labels_by_content(entries: Sequence[Entry]) -> Headless:
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
