"""What the folders and file names of a data set say about the class of each image."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from robustcli.data.labels import LabelSpace, own_space, recognise
from robustcli.data.listing import Entry
from robustcli.data.manifest import Labelled
from robustcli.data.part_names import PART_NAMES

# n01440764_tench.JPEG, n01440764_18.JPEG; or ILSVRC2012_val_00000293_n01440764.JPEG
_WNID_IN_NAME = re.compile(r"(n\d{8})[_.-].*|.*[_.-](n\d{8})\.[^.]+")


@dataclass(frozen=True)
class Wanted:
    """Which label space the labels must fit.

    Args:
        given: The one that the user named; None to recognise it.
        model: Name of the model's own, tried first.
    """

    given: LabelSpace | None
    model: str

    def fits(self, labels: Collection[str]) -> LabelSpace | None:
        """The label space that knows all of `labels`, or None."""
        if self.given is None:
            return recognise(labels, prefer=self.model)
        known = all(self.given.index_of(label) is not None for label in labels)
        return self.given if known and labels else None


class Whatever(Wanted):
    """Any classes, at least two: those of the data."""

    def fits(self, labels: Collection[str]) -> LabelSpace | None:
        """The label space of `labels`, or None."""
        return own_space(labels, "") if len(set(labels)) > 1 else None


def by_folder(entries: Sequence[Entry]) -> list[Labelled]:
    """The images that lie in folders, labelled with the first folder; others are left out."""
    return [Labelled(entry, entry.folder) for entry in entries if entry.folder is not None]


def by_file_name(entries: Sequence[Entry]) -> list[Labelled]:
    """All images, labelled with the wnid in their names; none when one has no wnid."""
    found = [_WNID_IN_NAME.fullmatch(entry.file_name) for entry in entries]
    labels = [match[1] or match[2] for match in found if match]
    if len(labels) < len(entries):
        return []
    return [Labelled(*pair) for pair in zip(entries, labels, strict=True)]


def by_layout(entries: Sequence[Entry], wanted: Wanted) -> list[Labelled]:
    """The images with the labels of their folders or names where these fit; else none."""
    flat = all(entry.folder is None for entry in entries)
    labelled = by_file_name(entries) if flat else by_folder(entries)
    return labelled if wanted.fits({one.label for one in labelled}) else []


def by_part(entries: Sequence[Entry], wanted: Wanted) -> list[Labelled]:
    """The images below `train`, `val` and `test` with the labels of the folders inside; else none.

    Every outermost folder must be such a part, one of them the training part.
    """
    folders = {entry.folder for entry in entries if entry.folder is not None}
    parts = {name: PART_NAMES.get(name.lower()) for name in folders}
    if None in parts.values() or "train" not in parts.values():
        return []
    labelled = [
        Labelled(entry, inside[1], parts[inside[0]])
        for entry in entries
        if len(inside := entry.relative.split("/")) > 2
    ]
    return labelled if wanted.fits({one.label for one in labelled}) else []


def unwrapped(entries: Sequence[Entry]) -> list[Entry]:
    """The images with one common outer folder taken off their paths; none without such a folder."""
    folders = {entry.folder for entry in entries}
    if len(folders) != 1 or None in folders:
        return []
    return [replace(entry, relative=entry.relative.partition("/")[2]) for entry in entries]
