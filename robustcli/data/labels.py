"""Label spaces: which classes there are, which index each has, and how folders name them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.core.names import canonical, nearest
from robustcli.data.classes_file import read_classes
from robustcli.data.tables import Say, unheard

BUNDLED = ("imagenet-1k", "cifar10")


@dataclass(frozen=True)
class LabelSpace:
    """An ordered set of classes.

    Args:
        name: `imagenet-1k`, `cifar10`, or the stem of the classes file.
        ids: WordNet ids, or class names where there are none; position = class index.
        names: A readable name for each class. Two classes may share one (ImageNet's two cranes).
    """

    name: str
    ids: tuple[str, ...]
    names: tuple[str, ...]

    def index_of(self, label: str) -> int | None:
        """The index of the class that `label` means; None when it means none, or more than one.

        Args:
            label: An id, a name (case and punctuation do not count) or a 0-based decimal index.
                Indices are not understood where classes are themselves named by numbers.
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
        labels = (self.ids, self.names)
        return _unambiguous((_spelling(one), i) for some in labels for i, one in enumerate(some))

    @cached_property
    def _named_by_numbers(self) -> bool:
        return any(label.isdecimal() for label in (*self.ids, *self.names))


def label_space(name_or_file: str, say: Say = unheard) -> LabelSpace:
    """The label space of that name, or the one that a classes file lists.

    A file with the very ids of a bundled label space is that label space, whatever its own name.

    Raises:
        UsageError: Neither a label space nor a readable classes file.
    """
    if canonical(name_or_file) in BUNDLED:
        return _bundled(canonical(name_or_file))
    path = Path(name_or_file).expanduser()
    if not path.is_file():
        close = nearest(name_or_file, BUNDLED)
        raise UsageError(
            f"No label space or classes file is called `{name_or_file}`.",
            f"Did you mean {' or '.join(f'`{c}`' for c in close)}?" if close else "",
            f"Use `--label-space {BUNDLED[0]}`, `--label-space {BUNDLED[1]}` or "
            "`--label-space FILE` with one class a line, in index order.",
        )
    space = _read(path, say)
    if canonical(space.name) in BUNDLED:  # other classes must not pass for these
        space = replace(space, name=path.name)
    return next((known for known in map(_bundled, BUNDLED) if known.ids == space.ids), space)


def recognise(labels: Collection[str], prefer: str | None = None) -> LabelSpace | None:
    """The bundled label space that knows every one of `labels`; None when there is none.

    Numbers are recognised only as the complete set 0 ... n-1 of the preferred label space:
    ten folders `0` to `9` hold digits as likely as the first ten classes of ImageNet.

    Args:
        labels: Folder names, or the labels of a file; a subset of the classes is fine.
        prefer: Name of the label space to try first (the model's own).
    """
    numbers = any(label.isdecimal() for label in labels)
    for space in sorted(map(_bundled, BUNDLED), key=lambda space: space.name != prefer):
        indices = {space.index_of(label) for label in labels}
        complete = space.name == prefer and len(indices) == len(space.ids)
        if labels and None not in indices and (complete or not numbers):
            return space
    return None


def own_space(labels: Collection[str], name: str) -> LabelSpace:
    """The label space that consists of `labels`: a bundled one where they are all of its classes.

    Args:
        labels: The different ones of a data set.
        name: What it is called where it is none of the bundled ones.
    """
    space = recognise(labels)
    if space is not None and len({space.index_of(label) for label in labels}) == len(space.ids):
        return space
    ids = tuple(sorted(set(labels)))
    return LabelSpace(name, ids, ids)


def _spelling(label: str) -> str:
    plain = unicodedata.normalize("NFKC", label).casefold()
    return re.sub(r"[\W_]+", "-", plain).strip("-") or plain


def _unambiguous(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    indices: dict[str, set[int]] = {}
    for label, index in pairs:
        indices.setdefault(label, set()).add(index)
    return {label: next(iter(found)) for label, found in indices.items() if len(found) == 1}


def _read(path: Path, say: Say = unheard) -> LabelSpace:
    classes = read_classes(path, say)
    return LabelSpace(path.stem, tuple(c.id for c in classes), tuple(c.name for c in classes))


@cache
def _bundled(name: str) -> LabelSpace:
    return _read(Path(str(files("robustcli") / "assets" / f"{name}.txt")))
