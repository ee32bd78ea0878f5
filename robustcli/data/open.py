"""From what the user calls the data to an index of images and classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.core.names import canonical, nearest
from robustcli.data import advice
from robustcli.data.datasets import DATASETS, LISTING, SEGMENTATION, Dataset, named, require
from robustcli.data.defaults import default_data
from robustcli.data.index import ImageIndex, ImageRef
from robustcli.data.labels import LabelSpace, own_space
from robustcli.data.labels import label_space as find_label_space
from robustcli.data.labels_file import read_labels
from robustcli.data.layout import Wanted, Whatever, by_layout, by_part, unwrapped
from robustcli.data.listing import Entry, list_folder
from robustcli.data.manifest import Labelled, read_manifest
from robustcli.data.tables import TABLE_SUFFIXES, Say
from robustcli.data.tar import TAR_SUFFIXES, is_tar, list_tar

# Folders whose own names say little; the folder above is then part of the data set's name.
_SPLITS = ("val", "validation", "valid", "test", "train", "images")


def open_index(
    data: str | None,
    *,
    model_label_space: str,
    label_space: str | LabelSpace | None = None,
    labels: Path | None = None,
    parts: bool = False,
) -> ImageIndex:
    """All images of a data set with their classes, sorted by id.

    Args:
        data: A folder, a tar, a manifest or the name of a data set; None for the default of the
            model's label space.
        model_label_space: Name of the label space that the model answers in.
        label_space: The label space of the data, its name, or a classes file; None to recognise it.
        labels: File with the label of each image, for folders and tars that do not tell.
        parts: Whether the class folders may lie in folders `train`, `val` and `test`.

    Raises:
        UsageError: There is no such data, its classes are not known, or are not the model's.
    """
    data = default_data(model_label_space).data if data is None else data
    dataset = named(data)
    if dataset and dataset.label_space == SEGMENTATION:
        raise UsageError(
            f"`--data {dataset.name}` has masks, no classes.",
            "It is for segmenters, and the model is a classifier.",
            f"`{LISTING}` shows which data are for `{model_label_space}`.",
        )
    given = label_space or (dataset.label_space if dataset else None)
    notes: list[str] = []
    space = find_label_space(given, notes.append) if isinstance(given, str) else given
    wanted = Wanted(space, model_label_space)
    path = require(dataset) if dataset else _existing(data)
    labelled = _labelled(path, labels, wanted, notes.append, parts=parts)
    return _index(path, dataset, wanted, labelled, notes)


def open_classes(data: str) -> ImageIndex:
    """All images of a data set with whatever classes it has, sorted by id.

    Classes are in the order of their names; where they are all those of a bundled label space,
    they are that. Folders `train`, `val` and `test` around class folders say the part of an image,
    as does a manifest's column `split`.

    Args:
        data: A folder, a tar, a manifest or the name of a data set.

    Raises:
        UsageError: There is no such data, it has no classes, or only one.
    """
    dataset = named(data)
    if dataset and dataset.label_space == SEGMENTATION:
        raise UsageError(
            f"`--data {dataset.name}` has masks, no classes.",
            "It is for segmenters, and the model is a classifier.",
            f"`{LISTING}` shows which data have classes.",
        )
    path = require(dataset) if dataset else _existing(data)
    wanted = Whatever(None, "")
    notes: list[str] = []
    labelled = _labelled(
        path, None, wanted, notes.append, parts=True, refused=advice.no_own_classes
    )
    labels = {one.label for one in labelled}
    if len(labels) < 2:
        raise advice.one_class(path, *labels)
    space = own_space(labels, _display_name(path))
    return _index(path, dataset, Wanted(space, space.name), labelled, notes)


def _index(
    path: Path, dataset: Dataset | None, wanted: Wanted, labelled: Sequence[Labelled],
    notes: Sequence[str],
) -> ImageIndex:  # fmt: skip
    names = {one.label for one in labelled}
    space = wanted.fits(names)
    if space is None:
        raise advice.unknown_labels(path, names, wanted)
    if canonical(space.name) != canonical(wanted.model):
        raise advice.other_label_space(path, space, wanted.model)
    targets = {name: space.index_of(name) for name in names}
    images = [_ref(one.entry, targets[one.label], one.split) for one in labelled]
    return ImageIndex(
        name=dataset.name if dataset else _display_name(path),
        location=str(path.resolve()),
        label_space=space,
        images=tuple(sorted(images, key=lambda image: image.image_id)),
        available=len(images),
        demonstration=dataset is not None,
        notes=tuple(dict.fromkeys(notes)),
    )


def _ref(entry: Entry, target: int | None, split: str | None) -> ImageRef:
    assert target is not None, "`Wanted.fits` has vouched for every label"
    return ImageRef(
        entry.relative, target, entry.path, entry.member, entry.offset, entry.size, split
    )


Refused = Callable[[Path, Sequence[Entry], Wanted], UsageError]
"""Of a place, the images in it and what was wanted: why they have no such classes."""


def _labelled(
    path: Path, labels: Path | None, wanted: Wanted, say: Say, *, parts: bool,
    refused: Refused = advice.no_classes,
) -> list[Labelled]:  # fmt: skip
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        if labels is not None:
            raise UsageError(
                f"`--labels {labels}` does not go with `--data {path}`.",
                "A manifest names the label of each image itself.",
                "Leave out `--labels`.",
            )
        return read_manifest(path, say)
    listing = list_folder(path) if path.is_dir() else list_tar(path)
    entries = listing.entries
    for note in listing.notes(path):
        say(note)
    if not entries:
        raise advice.no_images(path)
    if labels is not None:
        return read_labels(labels, entries if path.is_dir() else _innermost(entries), say)
    found = _by_layout(path, entries, wanted, parts=parts)
    if not found:
        raise refused(path, entries, wanted)
    return found


def _by_layout(
    path: Path, entries: Sequence[Entry], wanted: Wanted, *, parts: bool
) -> list[Labelled]:
    """The labels of the outermost folders that fit, if any; in a tar, outer ones do not count.

    A user cannot name a level inside a tar, so `test/<class>/0001.jpg` must do as it is.
    """
    if path.is_dir() and advice.is_class_folder(path, entries, wanted):
        raise advice.no_classes(path, entries, wanted)
    level = entries
    while level:
        found = (by_part(level, wanted) if parts else []) or by_layout(level, wanted)
        if found:
            return found
        level = [] if path.is_dir() else unwrapped(level)
    return []


def _innermost(entries: Sequence[Entry]) -> Sequence[Entry]:
    inner = unwrapped(entries)
    return _innermost(inner) if inner else entries


def _existing(data: str) -> Path:
    path = Path(data).expanduser()
    readable = path.is_dir() or is_tar(path) or path.suffix.lower() in TABLE_SUFFIXES
    if not path.exists():
        close = nearest(data, (d.name for d in DATASETS))
        raise UsageError(
            f"There is no data at `{data}`.",
            f"Did you mean the data set {' or '.join(f'`{c}`' for c in close)}?"
            if close
            else f"It is no folder or file here (`{Path.cwd()}`), and no data set is called so.",
            f"Check the path; `{LISTING}` shows the data sets that have names.",
        )
    if not readable:
        raise UsageError(
            f"`{data}` cannot be read as data.",
            f"Expected a folder, a table ({', '.join(sorted(TABLE_SUFFIXES))}) or a tar "
            f"({', '.join(TAR_SUFFIXES)}).",
            "Unpack other archives first; for a photo, name the folder above its class folder.",
        )
    return path


def _display_name(path: Path) -> str:
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name.lower() in _SPLITS else path.name
