"""How folders and file names say the class of each image, and advice where they do not."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.core.names import nearest
from robustcli.data.labels import BUNDLED, LabelSpace, label_space, own_space, recognise
from robustcli.data.listing import IMAGE_SUFFIXES, Entry
from robustcli.data.manifest import PART_NAMES, Labelled
from robustcli.data.tar import is_tar

# What the folders and file names of a data set say about the class of each image.


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


# What is wrong with a data folder, and what to do about it, in words.


_SHOWN = 5


def no_images(location: Path) -> UsageError:
    """There is no image at `location`."""
    tars = sorted(p.name for p in location.iterdir() if is_tar(p)) if location.is_dir() else []
    todo = "Name the folder whose subfolders are the classes."
    if tars:
        todo = f"To read a tar there, name it: `--data {location / tars[0]}`."
    return UsageError(
        f"`{location}` holds no images.",
        f"Files that end in {', '.join(sorted(IMAGE_SUFFIXES))} were looked for, at any depth.",
        todo,
    )


def no_classes(location: Path, entries: Sequence[Entry], wanted: Wanted) -> UsageError:
    """Images were found at `location`, but not their classes."""
    folders = {entry.folder for entry in entries if entry.folder is not None}
    if not folders:
        return _flat(location, wanted)
    inner = [name for name in sorted(folders) if wanted.fits(_subfolders(entries, name))]
    if inner:
        return UsageError(
            f"`{location}` is one level too high.",
            f"The folders below {listed(inner)} are the classes, not {listed(inner)}.",
            f"Use `--data {location / inner[0]}`.",
        )
    return unknown_labels(location, folders, wanted, "folder")


def no_own_classes(location: Path, entries: Sequence[Entry], wanted: Wanted) -> UsageError:
    """Images were found at `location`, but not in folders of at least two classes."""
    folders = {entry.folder for entry in entries if entry.folder is not None}
    if len(folders) == 1:
        return one_class(location, folders.pop())
    return UsageError(
        f"`{location}` does not say what its images show.",
        "Training needs the class of every image, of two classes at least.",
        f"Sort the images into a folder per class (`{location}/CLASS/IMAGE`, perhaps below `train`,"
        " `val` and `test`), or name a CSV with the columns `path` and `label`.",
    )


def one_class(location: Path, name: str) -> UsageError:
    """All images at `location` show the same."""
    return UsageError(
        f"`{location}` has one class only, `{name}`.",
        "There is nothing to tell apart.",
        "Name the folder above the class folders, or data with more classes.",
    )


def is_class_folder(location: Path, entries: Sequence[Entry], wanted: Wanted) -> bool:
    """Whether `location` is the folder of one class: named like it, with images directly inside."""
    named_like_a_class = wanted.fits({location.resolve().name}) is not None
    return named_like_a_class and all(entry.folder is None for entry in entries)


def unknown_labels(
    location: Path, labels: Collection[str], wanted: Wanted, kind: str = "label"
) -> UsageError:
    """The labels found at `location` fit no label space.

    Args:
        location: The data set, for the message.
        labels: All different labels.
        wanted: The label space they should fit.
        kind: What carries the label (`folder`, `label`).
    """
    if all(label.isdecimal() for label in labels):
        return _numbers(location, labels, wanted, kind)
    known = wanted.given or _closest(labels)
    unknown = sorted(label for label in labels if known.index_of(label) is None)
    found = f"It has {len(labels)}: {listed(sorted(labels))}."
    return UsageError(
        f"The {kind}s of `{location}` are the classes of no known label space."
        if wanted.given is None
        else f"The {kind}s of `{location}` are not all classes of `{known.name}`.",
        f"{found} {_matched(known, len(labels), unknown)}",
        "Name the classes with `--label-space FILE` (one class a line, in the order of the model's "
        "outputs), or correct the data.",
    )


def other_label_space(location: Path, data: LabelSpace, model: str) -> UsageError:
    """The classes of the data are not those that the model tells apart."""
    return UsageError(
        f"`{location}` does not fit the model.",
        f"Its classes are `{data.name}` ({len(data.ids)} classes), but the model answers in "
        f"`{model}`.",
        f"Choose a model for `{data.name}`, or data for `{model}` (`robust list datasets`).",
    )


def listed(names: Sequence[str]) -> str:
    """At most five of `names` in backticks, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{name}`" for name in names[:_SHOWN]) + more


def _matched(space: LabelSpace, labels: int, unknown: Sequence[str]) -> str:
    if labels == len(unknown):
        return f"The label space `{space.name}` knows none of them."
    close = nearest(unknown[0], (*space.names, *space.ids), most=1)
    guess = f" (`{unknown[0]}`: did you mean `{close[0]}`?)" if close else ""
    known = labels - len(unknown)
    return (
        f"The label space `{space.name}` knows {known} of them, but not {listed(unknown)}{guess}."
    )


def _flat(location: Path, wanted: Wanted) -> UsageError:
    if wanted.fits({location.resolve().name}):
        return UsageError(
            f"`{location}` is the folder of a single class.",
            f"It holds images directly, and `{location.resolve().name}` is a class.",
            f"Name the folder above it: `--data {location.resolve().parent}`.",
        )
    return UsageError(
        f"`{location}` does not say what its images show.",
        "It holds images directly, without class folders or wnids in the file names.",
        "Add `--labels FILE` (lines `FILE LABEL`), sort the images into class folders, or name a "
        "CSV with the columns `path` and `label`.",
    )


def _numbers(location: Path, labels: Collection[str], wanted: Wanted, kind: str) -> UsageError:
    what = f"The {kind}s of `{location}` are numbers, {listed(sorted(labels, key=int))}."
    space = wanted.given
    if space is None:
        return UsageError(
            what,
            "Numbers alone do not say of which label space they are indices.",
            f"Say so, for example `--label-space {BUNDLED[0]}` (0-based, in its order).",
        )
    return UsageError(
        what,
        f"An index of `{space.name}` lies between 0 and {len(space.ids) - 1}. The numbers 1 to "
        "1000 of ILSVRC2012_validation_ground_truth.txt are ILSVRC ids, not indices: their order "
        "is another one, and they are not read.",
        "Use wnids (`n01440764`), class names or 0-based indices.",
    )


def _subfolders(entries: Sequence[Entry], folder: str) -> set[str]:
    inside = [entry.relative.split("/") for entry in entries if entry.folder == folder]
    return {parts[1] for parts in inside if len(parts) > 2}


def _closest(labels: Collection[str]) -> LabelSpace:
    spaces = [label_space(name) for name in BUNDLED]
    return max(spaces, key=lambda s: sum(s.index_of(label) is not None for label in labels))
