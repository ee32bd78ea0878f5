"""Label spaces: ordered classes with ids and names, and how data sets refer to them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, TypeAlias

from robustcli.core.errors import UsageError
from robustcli.core.names import canonical, did_you_mean, nearest
from robustcli.data.tables import TABLE_SUFFIXES, Column, Say, ignore_note, read_columns, read_text

BUNDLED_SPACES = ("imagenet-1k", "cifar10", "cifar100")
NUMBERED = "numbers"
"""Prefix of the names of label spaces without class names, see `numbered_classes`."""
_WNID_AND_NAME = re.compile(r"(n\d{8})(?:[\s,]+(.+))?")
_WNID = re.compile(r"n\d{8}")
_COLUMNS = (
    Column("name", ("class", "label", "class-name"), required=False),
    Column("id", ("wnid", "synset"), required=False),
    Column("index", ("target",), required=False),
)


@dataclass(frozen=True)
class LabelSpace:
    """An ordered set of classes.

    Args:
        name: `imagenet-1k`, `cifar10`, or the stem of the classes file.
        ids: WordNet ids, or else class names; the position is the class index.
        names: A readable name for each class. Two classes may have the same name: ImageNet has two
            classes `crane`.
    """

    name: str
    ids: tuple[str, ...]
    names: tuple[str, ...]

    def index_of(self, label: str) -> int | None:
        """The index of the class `label`; None for an unknown or ambiguous label.

        A label is an id, a name (case and punctuation are ignored) or a 0-based decimal index.
        Indices are not accepted if the names of classes are numbers.
        """
        for index in (self._exact.get(label), self._spelled.get(_spelling(label))):
            if index is not None:
                return index
        numbered = label.isascii() and label.isdecimal() and not self._named_by_numbers
        return int(label) if numbered and int(label) < len(self.ids) else None

    @cached_property
    def _exact(self) -> dict[str, int]:
        by_name = _unambiguous((name, index) for index, name in enumerate(self.names))
        return by_name | {identity: index for index, identity in enumerate(self.ids)}

    @cached_property
    def _spelled(self) -> dict[str, int]:
        pairs = (pair for labels in (self.ids, self.names) for pair in enumerate(labels))
        return _unambiguous((_spelling(label), index) for index, label in pairs)

    @cached_property
    def _named_by_numbers(self) -> bool:
        return any(label.isdecimal() for label in (*self.ids, *self.names))


def _spelling(label: str) -> str:
    plain = unicodedata.normalize("NFKC", label).casefold()
    return re.sub(r"[\W_]+", "-", plain).strip("-") or plain


def _unambiguous(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    indices: dict[str, set[int]] = {}
    for label, index in pairs:
        indices.setdefault(label, set()).add(index)
    return {label: min(same) for label, same in indices.items() if len(same) == 1}


def read_label_space(name_or_file: str, say: Say = ignore_note) -> LabelSpace:
    """The label space with a bundled name, or of a classes file (see `read_classes`).

    A file with the ids of a bundled label space is read as that label space, whatever its name.

    Raises:
        UsageError: The argument is neither a bundled label space nor a readable classes file.
    """
    if canonical(name_or_file) in BUNDLED_SPACES:
        return _bundled(canonical(name_or_file))
    path = Path(name_or_file).expanduser()
    if not path.is_file():
        raise UsageError(
            f"No label space or classes file is called `{name_or_file}`.",
            did_you_mean(nearest(name_or_file, BUNDLED_SPACES)),
            f"Use `--label-space {BUNDLED_SPACES[0]}`, `--label-space {BUNDLED_SPACES[1]}` or "
            "`--label-space FILE` with one class per line, in index order.",
        )
    space = _read_label_space(path, say)
    if canonical(space.name) in BUNDLED_SPACES:  # bundled names are reserved
        space = replace(space, name=path.name)
    return next((s for s in map(_bundled, BUNDLED_SPACES) if s.ids == space.ids), space)


@cache
def _bundled(name: str) -> LabelSpace:
    return _read_label_space(Path(str(files("robustcli") / "assets" / f"{name}.txt")))


def _read_label_space(path: Path, say: Say = ignore_note) -> LabelSpace:
    ids, names = zip(*read_classes(path, say), strict=True)
    return LabelSpace(path.stem, ids, names)


def numbered_classes(model: str, count: int) -> LabelSpace:
    """The label space of a `model` without class names: `0` to `count - 1`."""
    numbers = tuple(map(str, range(count)))
    return LabelSpace(f"{NUMBERED} of {model}", numbers, numbers)


def recognise_space(labels: Collection[str], prefer: str | None = None) -> LabelSpace | None:
    """The bundled label space that contains all `labels`, `prefer` first; None without one.

    Numbers are recognised only as the complete set 0 ... n-1 of the preferred label space: ten
    folders `0` to `9` can be digits or the first ten classes of ImageNet.
    """
    numbers = any(label.isdecimal() for label in labels)
    for space in sorted(map(_bundled, BUNDLED_SPACES), key=lambda space: space.name != prefer):
        indices = {space.index_of(label) for label in labels}
        complete = space.name == prefer and len(indices) == len(space.ids)
        if labels and None not in indices and (complete or not numbers):
            return space
    return None


def label_space_of(labels: Collection[str], name: str) -> LabelSpace:
    """The label space with exactly these labels: a bundled one, else a new one named `name`."""
    space = recognise_space(labels)
    if space is not None and len({space.index_of(label) for label in labels}) == len(space.ids):
        return space
    ids = tuple(sorted(set(labels)))
    return LabelSpace(name, ids, ids)


@dataclass(frozen=True)
class ModelClasses:
    """Expects data with the classes of a model.

    Args:
        label_space: Label space of the data, as chosen by the user; None to recognise it.
        model: Name of the model's label space, which is preferred in the recognition.
    """

    label_space: LabelSpace | None
    model: str

    def fit(self, labels: Collection[str]) -> LabelSpace | None:
        """The label space that contains all `labels`; None without one."""
        if self.label_space is None:
            return recognise_space(labels, prefer=self.model)
        fits = all(self.label_space.index_of(label) is not None for label in labels)
        return self.label_space if fits and labels else None


@dataclass(frozen=True)
class AnyClasses:
    """Accepts any classes, at least two; `name` is the name of a new label space."""

    name: str

    def fit(self, labels: Collection[str]) -> LabelSpace | None:
        """The label space of `labels`; None for fewer than two."""
        return label_space_of(labels, self.name) if len(set(labels)) > 1 else None


ExpectedClasses: TypeAlias = ModelClasses | AnyClasses


class ClassEntry(NamedTuple):
    """One class: its id (a wnid, or else the name) and its name."""

    id: str
    name: str


def read_classes(path: Path, say: Say = ignore_note) -> tuple[ClassEntry, ...]:
    """The classes in the file at `path`; the position is the class index.

    The file is a text with one class per line (`NAME`, or `WNID NAME`), or a CSV, TSV or Parquet
    table with a column `name` or `id` (also `wnid`), and optionally `index` (0, 1, 2, ...).

    Raises:
        UsageError: The file cannot be read, is empty, or contains a class twice.
    """
    is_table = path.suffix.lower() in TABLE_SUFFIXES
    classes = _from_table(path, say) if is_table else _from_lines(read_text(path, say))
    if not classes:
        raise UsageError(
            f"`{path}` contains no class.",
            "It is empty.",
            "Write one class per line, in index order.",
        )
    frequent_id, times = Counter(entry.id for entry in classes).most_common(1)[0]
    if times > 1:
        raise UsageError(
            f"`{path}` contains the class `{frequent_id}` {times} times.",
            "Every class must be listed exactly once, because its position is its index.",
            "Remove the duplicates, or give the classes different ids (column `id`).",
        )
    return tuple(classes)


def _from_lines(text: str) -> list[ClassEntry]:
    classes = []
    for line in filter(None, map(str.strip, text.splitlines())):
        wnid = _WNID_AND_NAME.fullmatch(line)
        classes.append(ClassEntry(wnid[1], wnid[2] or wnid[1]) if wnid else ClassEntry(line, line))
    return classes


def _from_table(path: Path, say: Say) -> list[ClassEntry]:
    columns = read_columns(path, _COLUMNS, headless=_columns_by_content, say=say)
    names = columns.get("name") or columns.get("id")
    if names is None:
        raise UsageError(
            f"`{path}` has no column `name`.",
            "A table of classes has a column `name` or `id` (also `wnid`).",
            "Add a first line such as `index,id,name`.",
        )
    ids = columns.get("id") or names
    classes = [ClassEntry(*pair) for pair in zip(ids, names, strict=True)]
    return _in_index_order(path, columns["index"], classes) if "index" in columns else classes


def _columns_by_content(rows: Sequence[Sequence[str]]) -> dict[str, int] | None:
    if len(rows[0]) != 2:
        return None
    numbers = sorted(map(str, range(len(rows))))
    columns = {}
    for column in (0, 1):
        cells = [row[column].strip() for row in rows]
        if sorted(cells) == numbers:
            columns["index"] = column
        elif all(_WNID.fullmatch(cell) for cell in cells):
            columns["id"] = column
        else:
            columns["name"] = column
    return columns if len(columns) == 2 else None


def _in_index_order(path: Path, index: list[str], classes: list[ClassEntry]) -> list[ClassEntry]:
    if sorted(index) != sorted(map(str, range(len(classes)))):
        raise UsageError(
            f"`{path}` does not number its {len(classes)} classes from 0 to {len(classes) - 1}.",
            "Column `index` must contain each of these numbers exactly once.",
            "Correct the numbers, or remove the column, so that the order of the rows is used.",
        )
    return [entry for _, entry in sorted(zip(map(int, index), classes, strict=True))]
