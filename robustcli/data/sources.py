"""From what the user calls the data to a data set of images with classes or with masks."""

from __future__ import annotations

import os
import tomllib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcli.core.errors import UsageError
from robustcli.core.names import canonical, nearest
from robustcli.data import class_layouts
from robustcli.data import mask_layouts as advice
from robustcli.data.class_layouts import Wanted, Whatever, by_layout, by_part, listed, unwrapped
from robustcli.data.dataset import ImageIndex, ImageRef, PairIndex
from robustcli.data.labels import LabelSpace, own_space
from robustcli.data.labels import label_space as find_label_space
from robustcli.data.listing import MASK_SUFFIXES, Entry, list_folder
from robustcli.data.manifest import Labelled, read_labels, read_manifest
from robustcli.data.mask_layouts import Layout, find_layout, read_pairs, with_groups
from robustcli.data.named_datasets import DATASETS, LISTING, SEGMENTATION, Dataset, named, require
from robustcli.data.tables import TABLE_SUFFIXES, Say, read_text
from robustcli.data.tar import COMPRESSED_SUFFIXES, TAR_SUFFIXES, is_tar, list_tar

if TYPE_CHECKING:
    from robustcli.data.mask_values import ValueOption


# Which data a command takes when none is named: never silently, the caller says which.


SETTINGS = Path("robust.toml")


@dataclass(frozen=True)
class DefaultData:
    """What stands in for `--data`, and who said so (for the line that announces it)."""

    data: str
    origin: str


def default_data(label_space: str) -> DefaultData:
    """The data for models of `label_space`: from the environment, `robust.toml`, or bundled.

    Raises:
        UsageError: Nothing is set and nothing is bundled, or `robust.toml` cannot be read.
    """
    variable = variable_for(label_space)
    if os.environ.get(variable):
        return DefaultData(os.environ[variable], f"environment variable {variable}")
    configured = _from_settings(label_space)
    if configured is not None:
        return DefaultData(configured, f"`{SETTINGS}`")
    for dataset in DATASETS:
        if dataset.default_for and dataset.label_space == label_space:
            return DefaultData(dataset.name, "bundled")
    raise _none_set(label_space, variable)


def variable_for(label_space: str) -> str:
    """The environment variable that names the data: `ROBUST_DATA_IMAGENET_1K`."""
    return f"ROBUST_DATA_{canonical(label_space).replace('-', '_').upper()}"


def _from_settings(label_space: str) -> str | None:
    if not SETTINGS.is_file():
        return None
    data = _data_table()
    value = next((v for k, v in data.items() if canonical(k) == canonical(label_space)), None)
    if value is not None and not isinstance(value, str):
        raise UsageError(
            f"`{SETTINGS}`: `{label_space}` must be a text.",
            f"Expected the path or name of a data set, got `{value}`.",
            f'Write `{label_space} = "DIR"` below `[data]`.',
        )
    return value


def _data_table() -> dict[str, Any]:
    try:
        data = tomllib.loads(read_text(SETTINGS)).get("data", {})
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"`{SETTINGS}` cannot be read.", f"{error}.", "Correct it, or name data with `--data`."
        ) from error
    if not isinstance(data, dict):
        raise UsageError(
            f"`{SETTINGS}`: `data` must be a table.",
            f"Got `{data}`.",
            'Write `[data]` on a line of its own and `imagenet-1k = "DIR"` below it.',
        )
    return data


def _none_set(label_space: str, variable: str) -> UsageError:
    ways = [
        "--data DIR",
        f"{variable}=DIR in the environment, or `{label_space}" + ' = "DIR"` below `[data]` in '
        f"`{SETTINGS}`",
        *(
            f"--data {d.name}, after `robust fetch {d.name}` ({d.images:,} images)"
            for d in DATASETS
            if d.label_space == label_space
        ),
    ]
    return UsageError(
        f"No data is named for the label space `{label_space}`.",
        "None comes with robust, and none is set.",
        "Name some in one of these ways:\n" + "\n".join(f"  {way}" for way in ways),
    )


# From what the user calls the data to an index of images and classes.


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
    return _class_index(path, dataset, wanted, labelled, notes)


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
        path, None, wanted, notes.append, parts=True, refused=class_layouts.no_own_classes
    )
    labels = {one.label for one in labelled}
    if len(labels) < 2:
        raise class_layouts.one_class(path, *labels)
    space = own_space(labels, _class_set_name(path))
    return _class_index(path, dataset, Wanted(space, space.name), labelled, notes)


def _class_index(
    path: Path, dataset: Dataset | None, wanted: Wanted, labelled: Sequence[Labelled],
    notes: Sequence[str],
) -> ImageIndex:  # fmt: skip
    names = {one.label for one in labelled}
    space = wanted.fits(names)
    if space is None:
        raise class_layouts.unknown_labels(path, names, wanted)
    if canonical(space.name) != canonical(wanted.model):
        raise class_layouts.other_label_space(path, space, wanted.model)
    targets = {name: space.index_of(name) for name in names}
    images = [_ref(one.entry, targets[one.label], one.split) for one in labelled]
    return ImageIndex(
        name=dataset.name if dataset else _class_set_name(path),
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
    refused: Refused = class_layouts.no_classes,
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
        raise class_layouts.no_images(path)
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
    if path.is_dir() and class_layouts.is_class_folder(path, entries, wanted):
        raise class_layouts.no_classes(path, entries, wanted)
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


def _class_set_name(path: Path) -> str:
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name.lower() in _SPLITS else path.name


# From what the user calls the data to an index of images with masks.


# Folders whose own names say little; the folder above is then part of the data set's name.
_GENERAL = ("kaggle_3m", "tiff")


def open_pairs(data: str | None) -> PairIndex:
    """All pairs of image and mask of a data set, sorted by id; no file is read.

    Args:
        data: A folder or tar in one of the layouts, a manifest, or the name of a data set; any of
            them followed by `:FOLDER` for the pairs whose id lies in that folder. None for the
            default: `ROBUST_DATA_SEGMENTATION`, `robust.toml`, else the bundled set.

    Raises:
        UsageError: There is no such data, its layout is not known, or files lack their partners.
    """
    return _opened(data, lambda index: index)


def open_masked(
    data: str | None, *, foreground: ValueOption = None, ignore: ValueOption = None
) -> PairIndex:
    """The pairs of `open_pairs`, with how their masks are read: one decision for the data set.

    It is the decision of the whole data set also where only a folder of it is taken.

    Args:
        data: See `open_pairs`.
        foreground: The values of the masks that are to be found (`mask_values.decide`); None to
            decide by the values that the masks have.
        ignore: The values that count nowhere.

    Raises:
        UsageError: See `open_pairs`; or what the values of the masks mean is not known.
    """
    # Imported here because a listing of data sets needs no numpy.
    from robustcli.data.masks import survey

    def with_reading(index: PairIndex) -> PairIndex:
        masks = [pair.mask for pair in index.pairs]
        reading, told = survey(masks, index.location, foreground=foreground, ignore=ignore)
        pairs = tuple(replace(pair, reading=reading) for pair in index.pairs)
        return replace(index, pairs=pairs, reading=reading, notes=(*index.notes, *told))

    return _opened(data, with_reading)


def _opened(data: str | None, with_reading: Callable[[PairIndex], PairIndex]) -> PairIndex:
    data = default_data(SEGMENTATION).data if data is None else data
    if _is_there(data):
        return with_reading(_pair_index(data))
    whole, colon, folder = data.rpartition(":")
    # `C:\data` is a path, not the folder `\data` of a data set `C`.
    if colon and folder and folder[0] not in "/\\" and _is_there(whole):
        return _in_folder(with_reading(_pair_index(whole)), whole, folder.strip("/"))
    raise advice.no_data(data)


def _is_there(data: str) -> bool:
    return named(data) is not None or Path(data).expanduser().exists()


def _pair_index(data: str) -> PairIndex:
    dataset = named(data)
    if dataset is not None and dataset.label_space != SEGMENTATION:
        raise advice.no_masks(dataset)
    path = require(dataset) if dataset else Path(data).expanduser()
    notes: list[str] = []
    layout = _layout(path, notes.append)
    _check_splits(path, layout)
    return PairIndex(
        name=dataset.name if dataset else _pair_set_name(path),
        location=str(path.resolve()),
        pairs=tuple(sorted(layout.pairs, key=lambda pair: pair.image_id)),
        grouping=layout.grouping,
        available=len(layout.pairs),
        demonstration=dataset is not None,
        tolerance=layout.tolerance,
        notes=tuple(dict.fromkeys(notes)),
    )


def _layout(path: Path, say: Say) -> Layout:
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return read_pairs(path, say)
    if not path.is_dir() and not is_tar(path):
        raise advice.unreadable_kind(str(path))
    find = list_folder if path.is_dir() else list_tar
    listing = find(path, MASK_SUFFIXES)
    for note in listing.notes(path):
        say(note)
    if not listing.entries:
        raise advice.no_images(path)
    layout, groups = find_layout(path, listing.entries), groups_file(path)
    return with_groups(layout, groups, say) if groups.is_file() else layout


def groups_file(location: Path) -> Path:
    """Where the groups of pairs may be told: `DIR/groups.csv`; `NAME.groups.csv` beside a tar."""
    if location.is_dir():
        return location / "groups.csv"
    name = location.name.lower()
    suffix = next((s for s in COMPRESSED_SUFFIXES if name.endswith(s)), ".tar")
    return location.with_name(location.name[: -len(suffix)] + ".groups.csv")


def _in_folder(index: PairIndex, whole: str, folder: str) -> PairIndex:
    kept = tuple(pair for pair in index.pairs if pair.image_id.startswith(f"{folder}/"))
    if not kept:
        raise advice.no_such_folder(whole, index, folder)
    return replace(index, name=f"{index.name}:{folder}", pairs=kept, available=len(kept))


def _check_splits(path: Path, layout: Layout) -> None:
    """A group that the data puts into two splits would leak from training to test."""
    splits: dict[str, set[str | None]] = defaultdict(set)
    for pair in layout.pairs:
        splits[pair.group].add(pair.split)
    torn = sorted(group for group, names in splits.items() if len(names) > 1)
    if torn:
        raise UsageError(
            f"`{path}` puts {len(torn)} of {len(splits)} groups into more than one split.",
            f"A {layout.grouping} in training and test would make the test too easy: "
            f"{listed(torn)}.",
            "Give all images of one group the same split, or none.",
        )


def _pair_set_name(path: Path) -> str:
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name.lower() in _GENERAL else path.name
