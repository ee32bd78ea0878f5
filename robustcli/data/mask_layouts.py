"""How folders and tables pair images with masks, and advice where they do not."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.core.names import nearest
from robustcli.data.class_layouts import listed, unwrapped
from robustcli.data.dataset import ImageRef, PairIndex, PairRef
from robustcli.data.listing import IMAGE_SUFFIXES, MASK_SUFFIXES, Entry, is_image
from robustcli.data.manifest import PATH, check_missing, entries_named, is_named, parts_in
from robustcli.data.named_datasets import DATASETS, LISTING, SEGMENTATION, Dataset
from robustcli.data.tables import TABLE_SUFFIXES, Column, Say, read_columns, unheard
from robustcli.data.tar import TAR_SUFFIXES

# What is wrong with the data for a segmenter, and what to do about it, in words.


LAYOUTS_IN_WORDS = """Put the files into one of these layouts:
  DIR/images/NAME.png  DIR/masks/NAME.png                paired folders, at any depth
  DIR/PATIENT/NAME.tif  DIR/PATIENT/NAME_mask.tif        as LGG's kaggle_3m
  DIR/tiff/SPLIT/NAME.tiff  DIR/tiff/SPLIT_labels/NAME.tif  as Massachusetts Roads
  FILE.csv                                               columns image, mask, [patient], [split]"""


def no_layout(location: Path, entries: Sequence[Entry]) -> UsageError:
    """There are images at `location`, but which of them are masks is not known."""
    if location.name.lower() in ("images", "masks") or _is_one_patient(entries):
        return UsageError(
            f"`{location}` is one level too low.",
            "It holds only one of the folders that belong together.",
            f"Name the folder above it: `--data {location.resolve().parent}`.",
        )
    return UsageError(
        f"`{location}` has no known layout of images and masks.",
        f"It holds {len(entries)} images, such as `{min(entry.relative for entry in entries)}`.",
        LAYOUTS_IN_WORDS,
    )


def no_images(location: Path) -> UsageError:
    """There is no image at `location`."""
    return UsageError(
        f"`{location}` holds no images.",
        f"Files that end in {', '.join(sorted(IMAGE_SUFFIXES))} were looked for, at any depth.",
        LAYOUTS_IN_WORDS,
    )


def no_masks(dataset: Dataset) -> UsageError:
    """A data set for classifiers was named."""
    ours = ", ".join(f"`--data {d.name}`" for d in DATASETS if d.label_space == SEGMENTATION)
    return UsageError(
        f"`{dataset.name}` has no masks.",
        f"It is a set for classifiers of `{dataset.label_space}`.",
        f"Name images with masks: {ours}, or a folder of your own.",
    )


def no_data(data: str) -> UsageError:
    """There is nothing at the path `data`."""
    close = nearest(data, (d.name for d in DATASETS if d.label_space == SEGMENTATION))
    return UsageError(
        f"There is no data at `{data}`.",
        f"Did you mean the data set {' or '.join(f'`{c}`' for c in close)}?"
        if close
        else f"It is no folder or file here (`{Path.cwd()}`), and no data set is called so.",
        f"Check the path; `{LISTING}` shows the data sets that have names.",
    )


def unreadable_kind(data: str) -> UsageError:
    """`data` is a file of a kind that holds no data set."""
    return UsageError(
        f"`{data}` cannot be read as data.",
        f"Expected a folder, a table ({', '.join(sorted(TABLE_SUFFIXES))}) or a tar "
        f"({', '.join(TAR_SUFFIXES)}).",
        "Unpack other archives first; for one image, name the folder above its folder.",
    )


def no_such_folder(data: str, index: PairIndex, folder: str) -> UsageError:
    """No pair of `index`, which the user called `data`, lies in `folder`."""
    counts = Counter(p.image_id.rpartition("/")[0] for p in index.pairs if "/" in p.image_id)
    shown = ", ".join(f"`{name}` ({count})" for name, count in counts.most_common(5))
    return UsageError(
        f"`{data}` has no folder `{folder}`.",
        f"Its folders: {shown}{' and others' if len(counts) > 5 else ''}."
        if counts
        else "It has no folders.",
        f"Write `--data {data}:FOLDER` with one of them, or leave `:{folder}` out.",
    )


def _is_one_patient(entries: Sequence[Entry]) -> bool:
    flat = all(entry.folder is None for entry in entries)
    return flat and any(entry.relative.rpartition(".")[0].endswith("_mask") for entry in entries)


# What a layout makes of files: pairs, and what their groups are.


@dataclass(frozen=True)
class Layout:
    """The pairs that were found.

    Args:
        pairs: In no particular order.
        grouping: What a group is, in the singular: `patient`, `photo`, `image`.
        tolerance: See `PairIndex`.
    """

    pairs: tuple[PairRef, ...]
    grouping: str
    tolerance: int | None = None


def pair(image: Entry, mask: Entry, group: str | None = None, split: str | None = None) -> PairRef:
    """The pair of two files, named by the image's relative path; a group of its own by default."""
    return PairRef(_ref(image), _ref(mask), image.relative if group is None else group, split)


def match(
    location: Path, images: Mapping[str, Entry], masks: Mapping[str, Entry]
) -> list[tuple[Entry, Entry]]:
    """Each image with the mask of the same key.

    Args:
        location: The data set, for the message.
        images: The images by key.
        masks: The masks by key.

    Raises:
        UsageError: An image has no mask, or a mask no image.
    """
    lonely = {
        "image": sorted(images[key].relative for key in images.keys() - masks.keys()),
        "mask": sorted(masks[key].relative for key in masks.keys() - images.keys()),
    }
    if any(lonely.values()):
        raise _unpaired(location, lonely["image"], lonely["mask"], len(images), len(masks))
    return [(image, masks[key]) for key, image in images.items()]


def by_key(location: Path, keyed: Iterable[tuple[str, Entry]]) -> dict[str, Entry]:
    """The files by key.

    Raises:
        UsageError: Two files have the same key.
    """
    found: dict[str, list[Entry]] = defaultdict(list)
    for key, entry in keyed:
        found[key].append(entry)
    twice = {key: entries for key, entries in found.items() if len(entries) > 1}
    if twice:
        names = sorted(entry.relative for entry in twice[min(twice)])
        raise UsageError(
            f"`{location}` has {len(twice)} names more than once.",
            f"{listed(names)} differ in nothing but the suffix: which one belongs to "
            "which file cannot be told.",
            "Rename or remove all but one, or name the pairs in a CSV (`image,mask`).",
        )
    return {key: entries[0] for key, entries in found.items()}


def stem(entry: Entry) -> str:
    """The relative path without its suffix."""
    folder, slash, name = entry.relative.rpartition("/")
    return folder + slash + name.rpartition(".")[0]


def _ref(entry: Entry) -> ImageRef:
    return ImageRef(entry.relative, 0, entry.path, entry.member, entry.offset, entry.size)


def _unpaired(
    location: Path, without_mask: list[str], without_image: list[str], images: int, masks: int
) -> UsageError:
    counts, names = [], []
    if without_mask:
        counts.append(f"{len(without_mask)} of {images} images have no mask")
        names.append(f"Without a mask: {listed(without_mask)}.")
    if without_image:
        counts.append(f"{len(without_image)} of {masks} masks have no image")
        names.append(f"Without an image: {listed(without_image)}.")
    return UsageError(
        f"In `{location}` {' and '.join(counts)}.",
        " ".join(names),
        "Add the missing files (an all-black mask says: nothing to be found), remove the others, "
        "or name the pairs that count in a CSV (`image,mask`).",
    )


# Tables about pairs: a manifest of them, or the groups of pairs that lie in folders.


# The heading says what a group is, and the reports repeat it.
GROUPINGS = ("group", "patient", "subject", "case", "slide", "photo")
_IMAGE = Column("image", (PATH.name, *PATH.aliases))
_MASK_COLUMN = Column("mask", ("mask-path", "label", "label-path", "mask-id", "annotation"))
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
        path, (_IMAGE, _MASK_COLUMN, *_GROUPS, _SPLIT),
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
    return {_MASK_COLUMN.name: masks[0], _IMAGE.name: 1 - masks[0]} if len(masks) == 1 else None


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


# The folder layouts in which images and masks come, and how each is recognised.


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
