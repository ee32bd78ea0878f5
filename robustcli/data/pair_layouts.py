"""The folder layouts in which images and masks come, and how each is recognised."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from robustcli.data.layout import unwrapped
from robustcli.data.listing import Entry, is_image
from robustcli.data.pair_advice import no_layout
from robustcli.data.pair_layout import Layout, by_key, match, pair, stem

_MASK = "_mask"
_SPLITS = ("train", "val", "test")
# 17278960_15_r1c2: tile in row 1 and column 2 of the aerial photo 17278960_15.
_TILE = re.compile(r"_r\d+c\d+$")
# Pixels: the true roads are centre lines of a map, drawn with one width, so their borders are off.
_ROAD_TOLERANCE = 3


def find_layout(location: Path, entries: Sequence[Entry]) -> Layout:
    """The pairs among `entries`, in the first layout that fits; common outer folders do not count.

    Raises:
        UsageError: No layout fits, or files lack their partners.
    """
    level = entries
    while level:
        for recognise in LAYOUTS:
            found = recognise(location, level)
            if found is not None:
                return found
        level = unwrapped(level)
    raise no_layout(location, entries)


def by_two_folders(location: Path, entries: Sequence[Entry]) -> Layout | None:
    """`images/<name>.<suffix>` and `masks/<name>.<suffix>` (or `<name>_mask`), at any depth.

    The id is the path below `images`; every image is a group.
    """
    images, masks = below(entries, "images"), below(entries, "masks")
    if not images or not masks:
        return None
    return Layout(tuple(pair(*both) for both in _matched(location, images, masks)), "image")


def by_patient(location: Path, entries: Sequence[Entry]) -> Layout | None:
    """`<patient>/<name>.tif` and `<patient>/<name>_mask.tif`, as in Kaggle's LGG set.

    Source: kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation. Its archive holds the folder
    `kaggle_3m` twice; the outer one counts.
    """
    inside = below(entries, "kaggle_3m") or entries
    masks = [entry for entry in inside if stem(entry).endswith(_MASK)]
    if not masks or any(entry.relative.count("/") != 1 for entry in masks):
        return None
    images = [entry for entry in inside if not stem(entry).endswith(_MASK)]
    pairs = _matched(location, images, masks)
    return Layout(tuple(pair(image, mask, image.folder) for image, mask in pairs), "patient")


def by_split(location: Path, entries: Sequence[Entry]) -> Layout | None:
    """`tiff/<split>/<name>.tiff` and `tiff/<split>_labels/<name>.tif`: Massachusetts Roads.

    The splits are those of the folders; a group is the aerial photo that tiles were cut from.
    Source: kaggle.com/datasets/balraj98/massachusetts-roads-dataset; V. Mnih, Machine Learning for
    Aerial Image Labeling, PhD thesis, University of Toronto, 2013, also for the tolerance.
    """
    inside = below(entries, "tiff") or entries
    if not any(below(inside, split) and below(inside, f"{split}_labels") for split in _SPLITS):
        return None
    pairs = [
        pair(replace(image, relative=f"{split}/{image.relative}"), mask, _photo(image), split)
        for split in _SPLITS
        for image, mask in _matched(
            location / split, below(inside, split), below(inside, f"{split}_labels")
        )
    ]
    return Layout(tuple(pairs), "photo", _ROAD_TOLERANCE)


def _matched(
    location: Path, images: Sequence[Entry], masks: Sequence[Entry]
) -> list[tuple[Entry, Entry]]:
    """The pairs of one stem; a mask's may end in `_mask` where no image is called so.

    Arrays of numpy can be masks, not images: those beside images do not count.
    """
    images = [image for image in images if is_image(image.relative)]
    by_stem = by_key(location, ((stem(image), image) for image in images))
    keys = (stem(m) if stem(m) in by_stem else stem(m).removesuffix(_MASK) for m in masks)
    return match(location, by_stem, by_key(location, zip(keys, masks, strict=True)))


def below(entries: Sequence[Entry], folder: str) -> list[Entry]:
    """The entries in `folder` (case does not count), with paths that start below it."""
    return [
        replace(entry, relative=entry.relative.partition("/")[2])
        for entry in entries
        if entry.folder is not None and entry.folder.lower() == folder
    ]


def _photo(image: Entry) -> str:
    return _TILE.sub("", stem(image))


LAYOUTS: tuple[Callable[[Path, Sequence[Entry]], Layout | None], ...] = (
    by_two_folders,
    by_patient,
    by_split,
)
