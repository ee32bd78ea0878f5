"""From what the user calls the data to an index of images with masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from robustcli.core.errors import UsageError
from robustcli.data import pair_advice as advice
from robustcli.data.advice import listed
from robustcli.data.datasets import SEGMENTATION, named, require
from robustcli.data.defaults import default_data
from robustcli.data.listing import MASK_SUFFIXES, list_folder
from robustcli.data.pair_layout import Layout
from robustcli.data.pair_layouts import find_layout
from robustcli.data.pair_tables import read_pairs, with_groups
from robustcli.data.pairs import PairIndex
from robustcli.data.tables import TABLE_SUFFIXES, Say
from robustcli.data.tar import COMPRESSED_SUFFIXES, is_tar, list_tar

if TYPE_CHECKING:
    from robustcli.data.mask_values import ValueOption

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
        return with_reading(_index(data))
    whole, colon, folder = data.rpartition(":")
    # `C:\data` is a path, not the folder `\data` of a data set `C`.
    if colon and folder and folder[0] not in "/\\" and _is_there(whole):
        return _in_folder(with_reading(_index(whole)), whole, folder.strip("/"))
    raise advice.no_data(data)


def _is_there(data: str) -> bool:
    return named(data) is not None or Path(data).expanduser().exists()


def _index(data: str) -> PairIndex:
    dataset = named(data)
    if dataset is not None and dataset.label_space != SEGMENTATION:
        raise advice.no_masks(dataset)
    path = require(dataset) if dataset else Path(data).expanduser()
    notes: list[str] = []
    layout = _layout(path, notes.append)
    _check_splits(path, layout)
    return PairIndex(
        name=dataset.name if dataset else _display_name(path),
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


def _display_name(path: Path) -> str:
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name.lower() in _GENERAL else path.name
