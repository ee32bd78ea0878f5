"""Tables about images: manifests with classes or masks, files of labels, files of groups."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

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
    read_columns,
    read_text,
    unheard,
)

# The heading says what a group is, and the reports repeat it.
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
# Kaggle's LOC_val_solution.csv: `ImageId,PredictionString`, the string beginning with the wnid.
_LABELS_PATH = Column("path", (*_PATH.aliases, "name"))
_LABELS_LABEL = Column("label", (*_LABEL.aliases, "predictionstring"), remaining=True)
_WNID_AND_BOX = re.compile(r"(n\d{8})\s+\d")
_MASK_WORDS = ("mask", "label", "annotation", "truth", "gt")
_TRIED = 100  # rows by which the columns of a table without a header are recognised


def read_class_manifest(path: Path, say: Say = unheard) -> Layout[str]:
    """The images that the table at `path` lists, with their classes.

    Args:
        path: A CSV, TSV or Parquet file with the columns `path`, `label` and perhaps `split`; a
            path counts from the folder of the table.
        say: Hears what was read otherwise than as documented.

    Raises:
        UsageError: The table cannot be read, is empty, names an image twice, a file that is not
            there, or a split of another name.
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


def read_mask_manifest(path: Path, say: Say = unheard) -> Layout[FileRef]:
    """The images that the table at `path` lists, with their masks.

    Args:
        path: A CSV, TSV or Parquet file with the columns `image` and `mask`, perhaps one of
            `GROUPINGS`, perhaps `split`; paths count from the folder of the table.
        say: Hears what was read otherwise than as documented.

    Raises:
        UsageError: See `read_class_manifest`.
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


def with_groups(layout: Layout[FileRef], path: Path, say: Say = unheard) -> Layout[FileRef]:
    """`layout` with the groups (and splits) that the table at `path` gives to its images.

    Args:
        layout: Images of a folder or tar.
        path: A table with the columns `image` (the image's id, with or without suffix), one of
            `GROUPINGS` and perhaps `split`; lines about other images do not matter.
        say: Hears what was read otherwise than as documented.

    Raises:
        UsageError: The table cannot be read, has no group, or lacks an image.
    """
    columns = read_columns(path, (_IMAGE, *_GROUPS, _SPLIT), say=say)
    grouping = _grouping(columns)
    if grouping is None:
        raise UsageError(
            f"`{path}` has no column for the group.",
            f"Expected one of {', '.join(f'`{name}`' for name in GROUPINGS)}.",
            "Write a first line such as `image,patient`.",
        )
    rows = {_normal(name): row for row, name in enumerate(columns[_IMAGE.name])}
    ids = [one.image.relative for one in layout.labelled]
    row_of = [rows.get(image_id, rows.get(image_id.rpartition(".")[0])) for image_id in ids]
    missing = sorted(name for name, row in zip(ids, row_of, strict=True) if row is None)
    if missing:
        raise UsageError(
            f"`{path}` lacks {len(missing)} of {len(ids)} images.",
            f"Not in it: {quoted(missing)}.",
            "Add a line for each, with its path below `images/`.",
        )
    groups, splits = columns[grouping], _splits_in(path, columns, len(columns[grouping]))
    labelled = (
        replace(one, group=groups[row], split=splits[row])
        for one, row in zip(layout.labelled, row_of, strict=True)
        if row is not None
    )
    return replace(layout, labelled=tuple(labelled), grouping=grouping)


def read_labels(path: Path, files: Sequence[FileRef], say: Say = unheard) -> Layout[str]:
    """Each image of `files` with the label that the file at `path` gives it.

    Args:
        path: Lines `FILE LABEL`; or a table (CSV, TSV, Parquet); or one label a line, in the order
            of the sorted file names. Files are named by path, by name, or by name without suffix;
            files that are not in `files` do not matter.
        files: The images that were found.
        say: Hears what was read otherwise than as documented.

    Raises:
        UsageError: The file cannot be read, or leaves an image without a label.
    """
    if path.suffix.lower() in TABLE_SUFFIXES:
        labels = _labels_of(files, _labels_in_table(path, files, say))
    else:
        lines = [line.strip() for line in read_text(path, say).splitlines() if line.strip()]
        labels = _labels_of(files, _labels_in_lines(lines))
        if not any(labels):
            labels = _labels_of(files, _labels_in_table_of_any_name(path, files, say))
        if not any(labels):
            return _in_file_order(path, lines, files)
    missing = [file.relative for file, label in zip(files, labels, strict=True) if not label]
    if missing:
        raise UsageError(
            f"`{path}` has no label for {len(missing)} of {len(files)} images.",
            f"The first is `{min(missing)}`.",
            "Add lines for them, or take the files out of the folder.",
        )
    return Layout(tuple(Labelled(*pair) for pair in zip(files, labels, strict=True)))


# What the rows of manifests say.


def _files_named(
    table: Path, names: Sequence[str], *, say: Say = unheard,
    suffixes: frozenset[str] = IMAGE_SUFFIXES,
) -> list[FileRef]:  # fmt: skip
    """The files that a table names, whether they are there or not.

    Paths count from the folder of the table. A name without ending or folder (`image_id`) stands
    for the one file below that folder which is called so; where there are several, for none.

    Args:
        table: The table.
        names: As it has them.
        say: Hears which files such names stand for.
        suffixes: Of the files that may be meant.
    """
    files = [_file(table.parent, name) for name in names]
    missing = [row for row, file in enumerate(files) if not file.path.is_file()]
    if not missing:
        return files
    known: dict[str, list[FileRef]] = defaultdict(list)
    for file in list_folder(table.parent, suffixes).files:
        bare = file.relative[: -len(PurePosixPath(file.relative).suffix)]
        for spelled in (bare, file.relative):
            parts = spelled.split("/")
            for first in range(len(parts)):
                known["/".join(parts[first:])].append(file)
    for row in missing:
        name = files[row].relative
        meant = {file.relative: file for file in known.get(name, ())}
        exact = [file for file in meant.values() if file.relative.rpartition(".")[0] == name]
        if len(meant) == 1 or len(exact) == 1:
            (files[row],) = meant.values() if len(meant) == 1 else exact
    resolved = [row for row in missing if files[row].path.is_file()]
    if len(resolved) == len(missing):
        first = resolved[0]
        say(
            f"`{table}` has {len(resolved)} names that are no paths: each is the one file of that "
            f"name below `{table.parent}`, such as `{names[first]}` = `{files[first].relative}`."
        )
    return files


def _file(base: Path, name: str) -> FileRef:
    inside = _normal(name)
    return FileRef(normalised_path(inside), base / inside)


def _normal(name: str) -> str:
    return Path(os.path.normpath(name.replace("\\", "/") if os.sep == "/" else name)).as_posix()


def _check_images(path: Path, images: Sequence[FileRef], truth: str) -> None:
    """Raises UsageError where the table at `path` lists no image, or one of them twice."""
    if not images:
        raise UsageError(
            f"`{path}` lists no image.", "It has a header only.", "Add one line for each image."
        )
    counts = Counter(image.relative for image in images)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise UsageError(
            f"`{path}` lists {len(twice)} image{'s' if len(twice) > 1 else ''} more than once.",
            f"Repeated: {quoted(twice)}.",
            f"Every image has one {truth}: remove the repeated lines.",
        )


def _check_there(path: Path, files: Sequence[FileRef]) -> None:
    """Raises UsageError where some files of the table at `path` are not there."""
    missing = [file for file in files if not file.path.is_file()]
    if missing:
        raise UsageError(
            f"`{path}` lists {len(missing)} of {len(files)} files that are not there.",
            f"The first is `{missing[0].path}`.",
            f"Paths count from the folder of the table, `{path.parent}`: correct them or move it. "
            "Names without an ending are understood where one image below that folder has them.",
        )


def _grouping(columns: Mapping[str, list[str]]) -> str | None:
    """The column of the groups, whose name is also what a group is; None where there is none."""
    return next((name for name in GROUPINGS if name in columns), None)


def _splits_in(path: Path, columns: Mapping[str, list[str]], rows: int) -> Sequence[str | None]:
    """The split of each of the `rows` rows of the table at `path`, where it has such a column.

    Raises:
        UsageError: The column holds another word.
    """
    if _SPLIT.name not in columns:
        return [None] * rows
    words = columns[_SPLIT.name]
    unknown = sorted({word for word in words if word.lower() not in SPLIT_NAMES})
    if unknown:
        raise UsageError(
            f"`{path}` names {len(unknown)} unknown splits.",
            f"Column `split` holds {quoted(unknown)}; expected `train`, `val` or `test`.",
            "Correct them, or remove the column: the split is then drawn.",
        )
    return [SPLIT_NAMES[word.lower()] for word in words]


# The columns of manifests without a header, by what they hold.


def _class_columns_by_content(base: Path, rows: Sequence[Sequence[str]]) -> dict[str, int] | None:
    """One column of files, perhaps one of splits, and one that is left: the labels."""
    columns = range(len(rows[0]))
    files = [i for i in columns if all(_is_named(base, row[i].strip()) for row in rows[:_TRIED])]
    splits = [i for i in columns if all(row[i].strip().lower() in SPLIT_NAMES for row in rows)]
    left = [i for i in columns if i not in (*files, *splits)]
    if len(files) != 1 or len(left) != 1 or len(splits) > 1:
        return None
    found = {_PATH.name: files[0], _LABEL.name: left[0]}
    return found | ({_SPLIT.name: splits[0]} if splits else {})


def _mask_columns_by_content(base: Path, rows: Sequence[Sequence[str]]) -> dict[str, int] | None:
    """Two columns of files, the names in one of which say that they are masks."""
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
    """Whether there is a file `name` below `base`, with or without an image's ending."""
    path = _file(base, name).path
    return path.is_file() or any(
        path.with_name(path.name + suffix).is_file() for suffix in MASK_SUFFIXES if path.name
    )


# What a file of labels says.


def _labels_of(files: Sequence[FileRef], by_name: Mapping[str, str]) -> list[str]:
    """The label of each file, by its path, its name or its bare name; empty where it has none."""
    spellings = ((f.relative, f.file_name, f.file_name.rpartition(".")[0]) for f in files)
    return [next((by_name[name] for name in names if name in by_name), "") for names in spellings]


def _labels_in_lines(lines: Sequence[str]) -> dict[str, str]:
    split = [line.split(maxsplit=1) for line in lines]
    return {normalised_path(pair[0]): pair[1] for pair in split if len(pair) == 2}


def _labels_in_table(path: Path, files: Sequence[FileRef], say: Say) -> dict[str, str]:
    columns = read_columns(
        path, (_LABELS_PATH, _LABELS_LABEL), headless=_labels_by_content(files), say=say
    )
    names = map(normalised_path, columns[_LABELS_PATH.name])
    return dict(zip(names, map(_without_boxes, columns[_LABELS_LABEL.name]), strict=True))


def _labels_in_table_of_any_name(path: Path, files: Sequence[FileRef], say: Say) -> dict[str, str]:
    """Of a file that is not named like a table, what it says as one; nothing where it is none."""
    try:
        return _labels_in_table(path, files, say)
    except UsageError:
        return {}


def _labels_by_content(files: Sequence[FileRef]) -> Headless:
    bare = {file.file_name.rpartition(".")[0] for file in files}
    names = {*bare, *(file.relative for file in files), *(file.file_name for file in files)}

    def columns(rows: Sequence[Sequence[str]]) -> dict[str, int] | None:
        named = [
            i
            for i in range(len(rows[0]))
            if any(normalised_path(r[i].strip()) in names for r in rows)
        ]
        if len(rows[0]) != 2 or len(named) != 1:
            return None
        return {_LABELS_PATH.name: named[0], _LABELS_LABEL.name: 1 - named[0]}

    return columns


def _without_boxes(label: str) -> str:
    """The wnid of Kaggle's `n01978287 240 170 260 240`, any other label as it is."""
    boxes = _WNID_AND_BOX.match(label)
    return boxes[1] if boxes else label


def _in_file_order(path: Path, lines: Sequence[str], files: Sequence[FileRef]) -> Layout[str]:
    if len(lines) != len(files):
        raise UsageError(
            f"`{path}` does not fit the images.",
            f"It names none of the {len(files)} files, so it must hold one label a line in the "
            f"order of the sorted file names; but it has {len(lines)} lines.",
            "Use lines `FILE LABEL`, or a CSV with the columns `path` and `label`.",
        )
    ordered = sorted(files, key=lambda file: file.relative)
    return Layout(tuple(Labelled(*pair) for pair in zip(ordered, lines, strict=True)))
