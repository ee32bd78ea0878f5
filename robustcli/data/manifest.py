"""Tables of images: manifests with classes or masks, label files, and tables of groups."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from robustcli.core.errors import UsageError
from robustcli.data.advice import quoted
from robustcli.data.dataset import FileRef
from robustcli.data.layouts import SPLIT_NAMES, Labelled, Layout
from robustcli.data.listing import IMAGE_SUFFIXES, MASK_SUFFIXES, list_folder, normalised_path
from robustcli.data.tables import (
    TABLE_SUFFIXES,
    Column,
    Headless,
    Say,
    ignore_note,
    read_columns,
    read_text,
)

# The name of the column is the type of the groups, which reports show.
GROUPINGS = ("group", "patient", "subject", "case", "slide", "photo")
_PATH = Column(
    "path",
    (
        *("image", "file", "filename", "file-name", "image-path", "file-path", "filepath"),
        *("image-id", "imageid", "img", "image-name", "id"),
    ),
)
_IMAGE = Column("image", (_PATH.name, *_PATH.aliases))
_LABEL = Column("label", ("class", "wnid", "target", "class-name", "label-name"), remaining=True)
_MASK = Column("mask", ("mask-path", "label", "label-path", "mask-id", "annotation"))
_SPLIT = Column("split", required=False)
_GROUPS = tuple(Column(name, required=False) for name in GROUPINGS)
# Kaggle's LOC_val_solution.csv: `ImageId,PredictionString`; the string starts with the wnid.
_LABELS_PATH = Column("path", (*_PATH.aliases, "name"))
_LABELS_LABEL = Column("label", (*_LABEL.aliases, "predictionstring"), remaining=True)
_WNID_AND_BOX = re.compile(r"(n\d{8})\s+\d")
_MASK_WORDS = ("mask", "label", "annotation", "truth", "gt")
ValueT = TypeVar("ValueT")
_TRIED = 100  # rows that are examined to recognise the columns of a table without header


def read_class_manifest(path: Path, say: Say = ignore_note) -> Layout[str]:
    """The images in the table at `path`, with their classes.

    The table is a CSV, TSV or Parquet file with the columns `path`, `label` and optionally `split`;
    paths are relative to the folder of the table.

    Raises:
        UsageError: The table cannot be read, is empty, or contains an image twice, a missing file
            or an unknown split.
    """
    columns = read_columns(
        path, (_PATH, _LABEL, _SPLIT), say=say,
        headless=lambda rows: _class_columns_by_content(path.parent, rows),
    )  # fmt: skip
    images = _files_named(path, columns[_PATH.name], say=say)
    _check_images(path, images, "label")
    _check_there(path, images)
    splits = _splits_in(path, columns, len(images))
    rows = zip(images, columns[_LABEL.name], splits, strict=True)
    return Layout(tuple(Labelled(*row) for row in rows))


def read_mask_manifest(path: Path, say: Say = ignore_note) -> Layout[FileRef]:
    """The images in the table at `path`, with their masks; see `read_class_manifest`.

    The table has the columns `image` and `mask`, and optionally one of `GROUPINGS` and `split`.
    """
    columns = read_columns(
        path, (_IMAGE, _MASK, *_GROUPS, _SPLIT), say=say,
        headless=lambda rows: _mask_columns_by_content(path.parent, rows),
    )  # fmt: skip
    images = _files_named(path, columns[_IMAGE.name], say=say)
    masks = _files_named(path, columns[_MASK.name], say=say, suffixes=MASK_SUFFIXES)
    _check_images(path, images, "mask")
    _check_there(path, [*images, *masks])
    grouping = _grouping(columns)
    groups = columns[grouping] if grouping else [image.relative for image in images]
    splits = _splits_in(path, columns, len(images))
    rows = zip(images, masks, splits, groups, strict=True)
    return Layout(tuple(Labelled(*row) for row in rows), grouping or "image")


def with_groups(layout: Layout[FileRef], path: Path, say: Say = ignore_note) -> Layout[FileRef]:
    """`layout` with the groups and splits from the table at `path`.

    The table has the columns `image` (id of the image, with or without suffix), one of `GROUPINGS`
    and optionally `split`; rows of other images are ignored.

    Raises:
        UsageError: The table cannot be read, has no column of groups, or lacks an image.
    """
    columns = read_columns(path, (_IMAGE, *_GROUPS, _SPLIT), say=say)
    grouping = _grouping(columns)
    if grouping is None:
        raise UsageError(
            f"`{path}` has no column with the group of each image.",
            f"Expected one of {', '.join(f'`{name}`' for name in GROUPINGS)}.",
            "Write a first line such as `image,patient`.",
        )
    splits = _splits_in(path, columns, len(columns[grouping]))
    rows = zip(columns[grouping], splits, strict=True)
    ids = [labelled.image.relative for labelled in layout.labelled]
    names = {*ids, *(name.rpartition(".")[0] for name in ids)}
    row_of = _once(path, zip(columns[_IMAGE.name], rows, strict=True), names, grouping)
    found = [row_of.get(name, row_of.get(name.rpartition(".")[0])) for name in ids]
    missing = sorted(name for name, row in zip(ids, found, strict=True) if row is None)
    if missing:
        raise UsageError(
            f"`{path}` does not list {len(missing)} of {len(ids)} images.",
            f"Missing: {quoted(missing)}.",
            "Add a line for each, with its path below `images/`.",
        )
    labelled = (
        replace(image, group=row[0], split=row[1])
        for image, row in zip(layout.labelled, found, strict=True)
        if row is not None
    )
    return replace(layout, labelled=tuple(labelled), grouping=grouping)


def read_labels(path: Path, files: Sequence[FileRef], say: Say = ignore_note) -> Layout[str]:
    """The images `files` with their labels from the file at `path`.

    The file has lines `FILE LABEL`, or is a table (CSV, TSV, Parquet), or has one label per line in
    the order of the sorted file names. FILE is a path, a file name, or a file name without suffix;
    lines of other files are ignored.

    Raises:
        UsageError: The file cannot be read, or lacks the label of an image.
    """
    if path.suffix.lower() in TABLE_SUFFIXES:
        labels = _labels_of(files, _labels_in_table(path, files, say))
    else:
        lines = [line.strip() for line in read_text(path, say).splitlines() if line.strip()]
        names = _names_of(files)
        pairs = _named_labels(lines, names)
        labels = _labels_of(files, _once(path, pairs, names, "label"))
        if not any(labels):
            with suppress(UsageError):  # the file may not be a table either
                labels = _labels_of(files, _labels_in_table(path, files, say))
        if not any(labels):
            if len(lines) != len(files):
                raise UsageError(
                    f"`{path}` does not fit the images.",
                    f"It lists none of the {len(files)} files, so it must contain one label per "
                    f"line in the order of the sorted file names; but it has {len(lines)} lines.",
                    "Use lines `FILE LABEL`, or a CSV with the columns `path` and `label`.",
                )
            ordered = sorted(files, key=lambda file: file.relative)
            return Layout(tuple(Labelled(*pair) for pair in zip(ordered, lines, strict=True)))
    missing = [file.relative for file, label in zip(files, labels, strict=True) if not label]
    if missing:
        raise UsageError(
            f"`{path}` has no label for {len(missing)} of {len(files)} images.",
            f"The first is `{min(missing)}`.",
            "Add lines for them, or remove the files from the folder.",
        )
    return Layout(tuple(Labelled(*pair) for pair in zip(files, labels, strict=True)))


def _files_named(
    table: Path, names: Sequence[str], *, say: Say = ignore_note,
    suffixes: frozenset[str] = IMAGE_SUFFIXES,
) -> list[FileRef]:  # fmt: skip
    """The files with the `names` in a table; they need not exist.

    Paths are relative to the folder of the table. A name without suffix or folder (`image_id`) is
    resolved to the file with that name below that folder; an ambiguous name is not resolved.
    """
    files = [_file(table.parent, name) for name in names]
    missing = [row for row, file in enumerate(files) if not _is_there(file.path)]
    if not missing:
        return files
    by_name: dict[str, list[FileRef]] = defaultdict(list)
    for file in list_folder(table.parent, suffixes).files:
        without_suffix = file.relative[: -len(PurePosixPath(file.relative).suffix)]
        for path in (without_suffix, file.relative):
            parts = path.split("/")
            for first in range(len(parts)):
                by_name["/".join(parts[first:])].append(file)
    for row in missing:
        name = files[row].relative
        candidates = {file.relative: file for file in by_name.get(name, ())}
        exact = [file for file in candidates.values() if file.relative.rpartition(".")[0] == name]
        if len(candidates) == 1 or len(exact) == 1:
            (files[row],) = candidates.values() if len(candidates) == 1 else exact
    resolved = [row for row in missing if _is_there(files[row].path)]
    if len(resolved) == len(missing):
        first = resolved[0]
        say(
            f"`{table}` has {len(resolved)} names instead of paths. Each refers to the only file "
            f"of that name below `{table.parent}`, such as `{names[first]}` = "
            f"`{files[first].relative}`."
        )
    return files


def _file(base: Path, name: str) -> FileRef:
    inside = _normal(name)
    return FileRef(normalised_path(inside), base / inside)


def _id(name: str) -> str:
    """The id of an image with the path `name` in a table, if it is relative to the data set."""
    return normalised_path(_normal(name))


def _normal(name: str) -> str:
    return Path(os.path.normpath(name.replace("\\", "/") if os.sep == "/" else name)).as_posix()


def _check_images(path: Path, images: Sequence[FileRef], truth: str) -> None:
    if not images:
        raise UsageError(
            f"`{path}` lists no images.", "It has a header only.", "Add one line for each image."
        )
    paths = [image.path.absolute() for image in images]  # of relative and absolute names
    counts = Counter(paths)
    repeated = sorted(
        {i.relative for i, path in zip(images, paths, strict=True) if counts[path] > 1}
    )
    if repeated:
        raise UsageError(
            f"`{path}` lists {len(repeated)} image{'s' if len(repeated) > 1 else ''} more than "
            "once.",
            f"Repeated: {quoted(repeated)}.",
            f"Every image must have exactly one {truth}: remove the repeated lines.",
        )


def _is_there(path: Path) -> bool:
    """Whether `path` is a file; False for names that are too long for the file system."""
    try:
        return path.is_file()
    except OSError:
        return False


def _check_there(path: Path, files: Sequence[FileRef]) -> None:
    missing = [file for file in files if not _is_there(file.path)]
    if missing:
        raise UsageError(
            f"`{path}` lists {len(missing)} of {len(files)} files that do not exist.",
            f"The first is `{missing[0].path}`.",
            f"Paths are relative to the folder of the table, `{path.parent}`: correct them or "
            "move it. A name without suffix is accepted if exactly one image below that folder "
            "has it.",
        )


def _grouping(columns: Mapping[str, list[str]]) -> str | None:
    """Name of the column of groups; None without one."""
    return next((name for name in GROUPINGS if name in columns), None)


def _splits_in(path: Path, columns: Mapping[str, list[str]], rows: int) -> Sequence[str | None]:
    """The split of each row, None without splits; raises UsageError for an unknown split."""
    if _SPLIT.name not in columns:
        return [None] * rows
    splits = columns[_SPLIT.name]
    unknown = sorted({split for split in splits if split.lower() not in SPLIT_NAMES})
    if unknown:
        raise UsageError(
            f"`{path}` contains {len(unknown)} unknown splits.",
            f"Column `split` contains {quoted(unknown)}; expected `train`, `val` or `test`.",
            "Correct them, or remove the column: the split is then drawn at random.",
        )
    return [SPLIT_NAMES[split.lower()] for split in splits]


def _class_columns_by_content(base: Path, rows: Sequence[Sequence[str]]) -> dict[str, int] | None:
    """Recognises one column of files, an optional one of splits, and the remaining of labels."""
    columns = range(len(rows[0]))
    files = [i for i in columns if all(_is_named(base, row[i].strip()) for row in rows[:_TRIED])]
    splits = [i for i in columns if all(row[i].strip().lower() in SPLIT_NAMES for row in rows)]
    labels = [i for i in columns if i not in (*files, *splits)]
    if len(files) != 1 or len(labels) != 1 or len(splits) > 1:
        return None
    indices = {_PATH.name: files[0], _LABEL.name: labels[0]}
    return indices | ({_SPLIT.name: splits[0]} if splits else {})


def _mask_columns_by_content(base: Path, rows: Sequence[Sequence[str]]) -> dict[str, int] | None:
    """Recognises two columns of files, one of which contains only names of masks."""
    if len(rows[0]) != 2:
        return None
    columns = [[row[i].strip() for row in rows] for i in (0, 1)]
    if not all(_is_named(base, name) for column in columns for name in column[:_TRIED]):
        return None
    masks = [
        i
        for i, column in enumerate(columns)
        if all(any(word in name.lower() for word in _MASK_WORDS) for name in column)
    ]
    return {_MASK.name: masks[0], _IMAGE.name: 1 - masks[0]} if len(masks) == 1 else None


def _is_named(base: Path, name: str) -> bool:
    """Whether the file `name`, or `name` with the suffix of an image or mask, is in `base`."""
    path = _file(base, name).path
    return _is_there(path) or any(
        _is_there(path.with_name(path.name + suffix)) for suffix in MASK_SUFFIXES if path.name
    )


def _labels_of(files: Sequence[FileRef], by_name: Mapping[str, str]) -> list[str]:
    """The label of each file by its path, name or name without suffix; empty if missing."""
    return [next((by_name[n] for n in _spellings(file) if n in by_name), "") for file in files]


def _spellings(file: FileRef) -> tuple[str, str, str]:
    """The names of a file in a file of labels, the most exact first."""
    return file.relative, file.file_name, file.file_name.rpartition(".")[0]


def _names_of(files: Sequence[FileRef]) -> set[str]:
    return {name for file in files for name in _spellings(file)}


def _named_labels(lines: Sequence[str], names: Collection[str]) -> list[tuple[str, str]]:
    """The name and the label in the lines `FILE LABEL`, without lines of other files.

    The name is the longest beginning of a line that is one of `names`, because it may have spaces.
    """
    pairs = []
    for line in lines:
        gaps = [gap.start() for gap in re.finditer(r"\s+", line)]
        end = next((gap for gap in reversed(gaps) if _id(line[:gap]) in names), None)
        if end is not None:
            pairs.append((line[:end], line[end:].strip()))
    return pairs


def _once(
    path: Path, pairs: Iterable[tuple[str, ValueT]], names: Collection[str], what: str
) -> dict[str, ValueT]:
    """The value of each of the `names` in the table at `path`; other rows are ignored.

    Raises:
        UsageError: A name has several values, which `what` describes.
    """
    values: dict[str, ValueT] = {}
    repeated = set[str]()
    for name, value in ((_id(name), value) for name, value in pairs):
        if name in names and values.setdefault(name, value) != value:
            repeated.add(name)
    if repeated:
        raise UsageError(
            f"`{path}` lists {len(repeated)} image{'s' if len(repeated) > 1 else ''} more than "
            "once, with different values.",
            f"Repeated: {quoted(sorted(repeated))}.",
            f"Every image must have exactly one {what}: remove the wrong lines.",
        )
    return values


def _labels_in_table(path: Path, files: Sequence[FileRef], say: Say) -> dict[str, str]:
    columns = read_columns(
        path, (_LABELS_PATH, _LABELS_LABEL), headless=_labels_by_content(files), say=say
    )
    # A label from Kaggle can contain boxes after the wnid: `n01978287 240 170 260 240`.
    boxes = [(_WNID_AND_BOX.match(label), label) for label in columns[_LABELS_LABEL.name]]
    labels = (match[1] if match else label for match, label in boxes)
    pairs = zip(columns[_LABELS_PATH.name], labels, strict=True)
    return _once(path, pairs, _names_of(files), "label")


def _labels_by_content(files: Sequence[FileRef]) -> Headless:
    names = _names_of(files)

    def columns(rows: Sequence[Sequence[str]]) -> dict[str, int] | None:
        columns_of_files = [
            i for i in range(len(rows[0])) if any(_id(r[i].strip()) in names for r in rows)
        ]
        if len(rows[0]) != 2 or len(columns_of_files) != 1:
            return None
        return {_LABELS_PATH.name: columns_of_files[0], _LABELS_LABEL.name: 1 - columns_of_files[0]}

    return columns
