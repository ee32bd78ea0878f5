"""Tables about pairs: a manifest of them, or the groups of pairs that lie in folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.data.advice import listed
from robustcli.data.listing import MASK_SUFFIXES, Entry
from robustcli.data.manifest import PATH, check_missing, entries_named, is_named
from robustcli.data.pair_layout import Layout, pair
from robustcli.data.part_names import parts_in
from robustcli.data.tables import Column, Say, read_columns, unheard

# The heading says what a group is, and the reports repeat it.
GROUPINGS = ("group", "patient", "subject", "case", "slide", "photo")
_IMAGE = Column("image", (PATH.name, *PATH.aliases))
_MASK = Column("mask", ("mask-path", "label", "label-path", "mask-id", "annotation"))
_MASK_WORDS = ("mask", "label", "annotation", "truth", "gt")
_SPLIT = Column("split", required=False)
_TRIED = 100  # rows by which the columns of a table without a header are told
_GROUPS = tuple(Column(name, required=False) for name in GROUPINGS)


def read_pairs(path: Path, say: Say = unheard) -> Layout:
    """The pairs that the table at `path` lists.

    Args:
        path: A CSV, TSV or Parquet file with the columns `image` and `mask`, perhaps one of
            `GROUPINGS`, perhaps `split`; paths count from the folder of the table.
        say: Hears what was read otherwise than as documented.

    Raises:
        UsageError: The table cannot be read, is empty, names an image twice, a file that is not
            there, or a split of another name.
    """
    columns = read_columns(
        path, (_IMAGE, _MASK, *_GROUPS, _SPLIT),
        headless=lambda rows: _by_content(path.parent, rows), say=say,
    )  # fmt: skip
    images = entries_named(path, columns["image"], say=say)
    masks = entries_named(path, columns["mask"], say=say, suffixes=MASK_SUFFIXES)
    if not images:
        raise UsageError(
            f"`{path}` lists no pair.", "It has a header only.", "Add one line for each image."
        )
    _check_repeated(path, images)
    check_missing(path, [*images, *masks])
    grouping, groups = _groups(columns) or ("image", [image.relative for image in images])
    splits = parts_in(path, columns) or [None] * len(images)
    rows = zip(images, masks, groups, splits, strict=True)
    return Layout(tuple(pair(*row) for row in rows), grouping)


def _by_content(base: Path, rows: Sequence[Sequence[str]]) -> dict[str, int] | None:
    """The two columns of a table without a header: files, one of which are called masks."""
    if len(rows[0]) != 2:
        return None
    columns = [[row[place].strip() for row in rows] for place in (0, 1)]
    if not all(is_named(base, name) for column in columns for name in column[:_TRIED]):
        return None
    masks = [
        place
        for place, column in enumerate(columns)
        if all(any(word in name.lower() for word in _MASK_WORDS) for name in column)
    ]
    return {_MASK.name: masks[0], _IMAGE.name: 1 - masks[0]} if len(masks) == 1 else None


def with_groups(layout: Layout, path: Path, say: Say = unheard) -> Layout:
    """`layout` with the groups (and splits) that the table at `path` gives to its images.

    Args:
        layout: Pairs of a folder or tar.
        path: A table with the columns `image` (the pair's id, with or without suffix), one of
            `GROUPINGS` and perhaps `split`; lines about other images do not matter.
        say: Hears what was read otherwise than as documented.

    Raises:
        UsageError: The table cannot be read, has no group, or lacks an image.
    """
    columns = read_columns(path, (_IMAGE, *_GROUPS, _SPLIT), say=say)
    found = _groups(columns)
    if found is None:
        raise UsageError(
            f"`{path}` has no column for the group.",
            f"Expected one of {', '.join(f'`{name}`' for name in GROUPINGS)}.",
            "Write a first line such as `image,patient`.",
        )
    rows = {_normal(name): row for row, name in enumerate(columns["image"])}
    row_of = {p.image_id: rows.get(p.image_id, rows.get(_bare(p.image_id))) for p in layout.pairs}
    lacking = sorted(name for name, row in row_of.items() if row is None)
    if lacking:
        raise UsageError(
            f"`{path}` lacks {len(lacking)} of {len(layout.pairs)} images.",
            f"Not in it: {listed(lacking)}.",
            "Add a line for each, with its path below `images/`.",
        )
    grouping, groups = found
    splits = parts_in(path, columns) or [None] * len(groups)
    pairs = (
        replace(one, group=groups[row], split=splits[row])
        for one in layout.pairs
        if (row := row_of[one.image_id]) is not None
    )
    return replace(layout, pairs=tuple(pairs), grouping=grouping)


def _groups(columns: Mapping[str, list[str]]) -> tuple[str, list[str]] | None:
    return next(((name, columns[name]) for name in GROUPINGS if name in columns), None)


def _normal(name: str) -> str:
    return Path(os.path.normpath(name.replace("\\", "/") if os.sep == "/" else name)).as_posix()


def _bare(image_id: str) -> str:
    return image_id.rpartition(".")[0]


def _check_repeated(path: Path, images: list[Entry]) -> None:
    counts = Counter(image.relative for image in images)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise UsageError(
            f"`{path}` lists {len(twice)} images more than once.",
            f"Repeated: {listed(twice)}.",
            "Every image has one mask: remove the repeated lines.",
        )
