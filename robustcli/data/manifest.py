"""A manifest: a table that names image files and the class of each."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from robustcli.core.errors import UsageError
from robustcli.data.listing import IMAGE_SUFFIXES, MASK_SUFFIXES, Entry, list_folder, stable
from robustcli.data.part_names import PART_NAMES, parts_in
from robustcli.data.tables import Column, Say, read_columns, unheard

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
