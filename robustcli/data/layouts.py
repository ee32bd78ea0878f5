"""Layouts of folders, file names and shards that define the class or mask of each image."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, NoReturn, TypeAlias, TypeVar

from robustcli.core.errors import UsageError
from robustcli.core.io import parse_json
from robustcli.core.names import counted
from robustcli.data.advice import quoted
from robustcli.data.archives import archive_stem, is_tar, list_tar
from robustcli.data.dataset import FileRef
from robustcli.data.labels import AnyClasses, ExpectedClasses
from robustcli.data.listing import IMAGE_SUFFIXES, is_image
from robustcli.data.tables import Say

LabelT = TypeVar("LabelT", str, FileRef)
"""The label of an image: the name of its class as in the data set, or the file of its mask."""

SPLIT_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Splits by their lower-case names in folders and columns."""
# n01440764_tench.JPEG, n01440764_18.JPEG; or ILSVRC2012_val_00000293_n01440764.JPEG
_WNID_IN_NAME = re.compile(r"(n\d{8})[_.-].*|.*[_.-](n\d{8})\.[^.]+")
_MASK = "_mask"
_ROAD_SPLITS = ("train", "val", "test")
# 17278960_15_r1c2: tile in row 1 and column 2 of the aerial photo 17278960_15.
_TILE = re.compile(r"_r\d+c\d+$")
_ROAD_TOLERANCE = 3  # pixels: the true roads are centre lines of a map, drawn with a constant width


@dataclass(frozen=True)
class Labelled(Generic[LabelT]):
    """An image with its label from a layout or a table.

    Args:
        image: File of the image.
        label: Name of its class, or file of its mask.
        split: `train`, `val` or `test`; None if the data set defines no splits.
        group: Name of its group; None if each image is a separate group.
        also: Names of further true classes.
    """

    image: FileRef
    label: LabelT
    split: str | None = None
    group: str | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout(Generic[LabelT]):
    """The labelled images of a data set, in any order; see `Dataset` for the other fields.

    `classes` contains the values and names of the classes of masks as published by the authors of
    the data; `all` if every value is a class. If it is empty, files in the data set or options
    define the classes. Without `name` and `location`, the path of the data set defines them.
    """

    labelled: tuple[Labelled[LabelT], ...]
    grouping: str = "image"
    tolerance: int | None = None
    evaluated: Literal["val", "test"] | None = None
    notes: tuple[str, ...] = ()
    classes: tuple[tuple[str, str], ...] | Literal["all"] = ()
    name: str = ""
    location: str = ""


Recogniser: TypeAlias = Callable[[Path, Sequence[FileRef]], Layout[LabelT] | None]
"""Reads the files of a data set in one layout; returns None if the layout does not fit."""


def find_layout(
    location: Path, files: Sequence[FileRef], recognisers: Sequence[Recogniser[LabelT]], *,
    inside: bool,
) -> Layout[LabelT] | None:  # fmt: skip
    """The result of the first recogniser that fits `files`; None if none fits.

    With `inside`, outer folders that contain all files are skipped.

    Raises:
        UsageError: A layout fits, but images lack their masks.
    """
    level = files
    while level:
        for recognise in recognisers:
            layout = recognise(location, level)
            if layout is not None:
                return layout
        level = unwrapped(level) if inside else []
    return None


def unwrapped(files: Sequence[FileRef]) -> list[FileRef]:
    """The files relative to their common outer folder; empty if they have no common folder."""
    folders = {file.folder for file in files}
    if len(folders) != 1 or None in folders:
        return []
    return [replace(file, relative=file.relative.partition("/")[2]) for file in files]


def class_recognisers(expected: ExpectedClasses, *, splits: bool) -> list[Recogniser[str]]:
    """Recognisers of images with `expected` classes; with `splits`, also of split folders."""
    folders = [by_split_folders, by_class_folders] if splits else [by_class_folders]
    any_classes = isinstance(expected, AnyClasses)

    def recogniser(label: Callable[[Sequence[FileRef]], list[Labelled[str]]]) -> Recogniser[str]:
        def recognise(_: Path, files: Sequence[FileRef]) -> Layout[str] | None:
            if splits and any_classes and label is by_class_folders and are_parts(files):
                return None  # `train` and `test` are not classes
            labelled = label(files)
            fits = expected.fit({image.label for image in labelled}) is not None
            return Layout(tuple(labelled)) if labelled and fits else None

        return recognise

    return [recogniser(label) for label in (*folders, by_wnid_in_name)]


def by_class_folders(files: Sequence[FileRef]) -> list[Labelled[str]]:
    """The images in folders, labelled with their first folder; other images are excluded."""
    return [Labelled(file, file.folder) for file in files if file.folder is not None]


def by_wnid_in_name(files: Sequence[FileRef]) -> list[Labelled[str]]:
    """Images without folders, labelled by the wnids in their names; empty if one has no wnid."""
    matches = [_WNID_IN_NAME.fullmatch(file.file_name) for file in files if file.folder is None]
    labels = [match[1] or match[2] for match in matches if match]
    if len(labels) < len(files):
        return []
    return [Labelled(*pair) for pair in zip(files, labels, strict=True)]


def by_split_folders(files: Sequence[FileRef]) -> list[Labelled[str]]:
    """The images below `train`, `val` and `test`, labelled with the folder inside the split.

    Empty if a first folder is not a split, or if the training split is missing.
    """
    folders = {file.folder for file in files if file.folder is not None}
    splits = {name: SPLIT_NAMES.get(name.lower()) for name in folders}
    if None in splits.values() or "train" not in splits.values():
        return []
    return [
        Labelled(file, parts[1], splits[parts[0]])
        for file in files
        if len(parts := file.relative.split("/")) > 2
    ]


def are_parts(files: Sequence[FileRef]) -> bool:
    """Whether all images are in folders `train`, `val` and `test`, and `train` exists."""
    parts = {SPLIT_NAMES.get((file.folder or "").lower()) for file in files}
    return "train" in parts and None not in parts


_TINY_IMAGES = re.compile(r"(train/n\d{8}|val|test)/images/[^/]+")
TINY_ANNOTATIONS = "val/val_annotations.txt"


def by_tiny_imagenet(
    location: Path, files: Sequence[FileRef], texts: Callable[[], Sequence[FileRef]]
) -> Layout[str] | None:
    """Tiny ImageNet in its published layout; None for other data.

    The layout is `train/WNID/images/NAME.JPEG`, and `val/images/NAME.JPEG` with classes in
    `val/val_annotations.txt`. The images in `test/images` are excluded: their classes are not
    published. `texts` returns the text files of the data set.
    Source: cs231n.stanford.edu/tiny-imagenet-200.zip.

    Raises:
        UsageError: A validation image has no class.
    """
    inside = files if any(file.folder == "val" for file in files) else unwrapped(files)
    validation = [file for file in inside if file.relative.startswith("val/images/")]
    if not validation or not all(_TINY_IMAGES.fullmatch(file.relative) for file in inside):
        return None
    annotations = [file for file in texts() if f"/{file.relative}".endswith(f"/{TINY_ANNOTATIONS}")]
    if not annotations:
        return None
    lines = (line.split() for line in annotations[0].read().decode("utf-8").splitlines())
    labels = {line[0]: line[1] for line in lines if len(line) > 1}
    missing = sorted(f.relative for f in validation if f.file_name not in labels)
    if missing:
        raise UsageError(
            f"`{location}` is incomplete: `{TINY_ANNOTATIONS}` has no class for {len(missing)} "
            "images.",
            f"Without a class: {quoted(missing)}.",
            "Unpack the archive again.",
        )
    training = [file for file in inside if file.folder == "train"]
    labelled = [Labelled(file, file.relative.split("/")[1], "train") for file in training]
    labelled += [Labelled(file, labels[file.file_name], "val") for file in validation]
    return Layout(tuple(labelled), evaluated="val")


# WebDataset shards: `name-{000000..000009}.tar` with `KEY.jpg` and `KEY.cls` (or `KEY.json`).
# A shard is read like any tar: its members are listed once, then each image is read by its offset.
# A key is the file name up to its first dot.
# Source: github.com/webdataset/webdataset, its description of the format.

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LABEL_SUFFIXES = frozenset({".cls", ".json"})
_JSON_KEYS = ("cls", "label", "class", "target", "wnid")
_MOST_SHARDS = 100_000


def names_shards(data: str) -> bool:
    """Whether `data` is a pattern of tar names with a range in braces."""
    return _BRACES.search(data) is not None and is_tar(Path(data))


def shards(pattern: str) -> list[Path]:
    """The paths of all shards of `pattern` in order; they need not exist.

    Raises:
        UsageError: A range is descending, or has too many shards.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [Path(pattern).expanduser()]
    first, last = int(match[1]), int(match[2])
    if last < first or last - first >= _MOST_SHARDS:
        raise UsageError(
            f"`{match[0]}` in `{pattern}` is not a range of shards.",
            f"Expected the first and the last number, at most {_MOST_SHARDS:,} apart.",
            "Write for example `name-{000000..000009}.tar`.",
        )
    width = len(match[1]) if match[1].startswith("0") else 0
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [
        path
        for number in range(first, last + 1)
        for path in shards(f"{before}{number:0{width}d}{after}")
    ]


def read_shards(pattern: str, say: Say) -> Layout[str]:
    """The images of all shards of `pattern`, with ids `SHARD/KEY.jpg` and their classes.

    Raises:
        UsageError: Shards are missing, an image has no class, or a key has several images.
    """
    paths = shards(pattern)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UsageError(
            f"{len(missing)} of the {len(paths)} shards of `{pattern}` are missing.",
            f"Missing: {quoted(missing)}.",
            "Download them, or specify only the numbers of existing shards.",
        )
    _check_names(pattern, paths)
    notes = list[str]()
    labelled = tuple(image for path in paths for image in _shard_images(path, notes.append))
    if not labelled:
        raise UsageError(
            f"The shards `{pattern}` contain no images.",
            " ".join(notes),
            "Every key needs one image, and `KEY.cls` (a class or its number) or `KEY.json`.",
        )
    for note in notes:
        say(note)
    return Layout(labelled)


def _check_names(pattern: str, paths: Sequence[Path]) -> None:
    """Raises UsageError for two shards of one name, whose images would have the same ids."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        by_name[archive_stem(path)].append(path)
    repeated = [same for same in by_name.values() if len(same) > 1]
    if repeated:
        raise UsageError(
            f"{len(repeated)} names of shards of `{pattern}` occur more than once.",
            f"{quoted([str(path) for path in repeated[0]])} have one name, and the id of an image "
            "is the name of its shard and its key.",
            "Give the shards different names.",
        )


def _shard_images(path: Path, say: Say) -> Iterator[Labelled[str]]:
    listing = list_tar(path, IMAGE_SUFFIXES | _LABEL_SUFFIXES)
    for note in listing.notes(path):
        say(note)
    by_key: dict[str, dict[str, FileRef]] = defaultdict(dict)
    for file in listing.files:
        folder, slash, name = file.relative.rpartition("/")
        key, _, extension = name.partition(".")
        by_key[f"{folder}{slash}{key}"][f".{extension.lower()}"] = file
    unused = list[str]()
    for key, files in sorted(by_key.items()):
        images = sorted(files.keys() & IMAGE_SUFFIXES)
        unused += [
            file.relative
            for extension, file in files.items()
            if extension not in IMAGE_SUFFIXES and is_image(file.relative)
        ]
        if len(images) > 1:
            _unclear(path, key, f"It has {len(images)} images: {quoted(images)}.")
        if images:
            image = files[images[0]]
            yield Labelled(
                replace(image, relative=f"{archive_stem(path)}/{image.relative}"),
                _label(path, key, files),
            )
    if unused:
        say(
            f"Skipped in `{path}`: {counted(len(unused), 'image')} with further dots in the name, "
            f"such as `{unused[0]}`: the key of a sample ends at the first dot."
        )


def _label(path: Path, key: str, files: dict[str, FileRef]) -> str:
    if ".cls" in files:
        return files[".cls"].read().decode("utf-8", "replace").strip()
    if ".json" not in files:
        _unclear(path, key, f"It has {quoted(sorted(files))}, but no `.cls` or `.json`.")
    try:
        content = parse_json(files[".json"].read())
    except ValueError as error:
        _unclear(path, key, f"Its `.json` cannot be read: {error}.")
    values = content if isinstance(content, dict) else {}
    label = next((values[key] for key in _JSON_KEYS if key in values), None)
    if isinstance(label, bool) or not isinstance(label, int | str):
        _unclear(path, key, f"Its `.json` has no {' or '.join(f'`{k}`' for k in _JSON_KEYS)}.")
    return str(label)


def _unclear(path: Path, key: str, reason: str) -> NoReturn:
    raise UsageError(
        f"The class of `{key}` in the shard `{path}` is not known.",
        reason,
        "Every key needs one image, and `KEY.cls` (a class or its number) or `KEY.json`.",
    )


def by_two_folders(location: Path, files: Sequence[FileRef]) -> Layout[FileRef] | None:
    """`images/<name>.<suffix>` and `masks/<name>.<suffix>` (or `<name>_mask`), at any depth.

    The id is the path below `images`; every image is a group. A mask can consist of one file per
    class: `masks/<class>/<name>.<suffix>`, or `masks/<name>_<class>.<suffix>`.
    """
    images, masks = files_below(files, "images"), files_below(files, "masks")
    if not images or not masks:
        return None
    joined = joined_classes(images, masks)
    pairs = match_stems(location, images, masks if joined is None else joined)
    return Layout(tuple(Labelled(*pair) for pair in pairs))


def joined_classes(images: Sequence[FileRef], masks: Sequence[FileRef]) -> list[FileRef] | None:
    """One mask per image with its files as parts, if masks have one file per class; else None.

    The name of every file must be that of an image and a class: the class is a folder before the
    name of the image, or a suffix after it. At least one image must have two files. Numbers are not
    accepted as classes, because they often number single objects; nor are `train`, `val` and
    `test`, which are splits.
    """
    stems = {image.stem for image in images if is_image(image.relative)}
    by_folder = [(folder, stem, mask) for mask in masks
                 for folder, slash, stem in [mask.stem.partition("/")] if slash]  # fmt: skip
    ends = [(match[2], match[1], mask) for mask in masks if mask.stem not in stems
            for match in [_longest(stems, mask.stem)] if match]  # fmt: skip
    for named in (by_folder, ends):
        keys = {key for key, stem, _ in named if stem in stems}
        is_every = len(named) == len(masks) and all(stem in stems for _, stem, _ in named)
        if not is_every or any(key.isdecimal() or key.lower() in SPLIT_NAMES for key in keys):
            continue
        parts: dict[str, dict[str, FileRef]] = defaultdict(dict)
        for key, stem, mask in named:
            if key in parts[stem]:
                return None  # two files for one class: `match_stems` reports the error
            parts[stem][key] = mask
        if all(len(of_image) < 2 for of_image in parts.values()):
            continue
        return [
            replace(next(iter(of_image.values())), relative=f"{stem}.parts",
                    parts=tuple(sorted(of_image.items())))
            for stem, of_image in parts.items()
        ]  # fmt: skip
    return None


def _longest(stems: Collection[str], name: str) -> tuple[str, str, str] | None:
    """`name`, the longest stem that it continues after `_` or `-`, and the continuation."""
    places = [place for place, sign in enumerate(name) if sign in "_-" and name[:place] in stems]
    if not places or not name[places[-1] + 1 :]:
        return None
    return name, name[: places[-1]], name[places[-1] + 1 :]


def by_patient(location: Path, files: Sequence[FileRef]) -> Layout[FileRef] | None:
    """`<patient>/<name>.tif` and `<patient>/<name>_mask.tif`, as in Kaggle's LGG data set.

    Source: kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation. Its archive contains the folder
    `kaggle_3m` twice; the outer one is read.
    """
    inside = files_below(files, "kaggle_3m") or files
    masks = [file for file in inside if file.stem.endswith(_MASK)]
    if not masks or any(file.relative.count("/") != 1 for file in masks):
        return None
    images = [file for file in inside if not file.stem.endswith(_MASK)]
    pairs = match_stems(location, images, masks)
    labelled = (Labelled(image, mask, group=image.folder) for image, mask in pairs)
    return Layout(tuple(labelled), "patient")


def by_road_tiles(location: Path, files: Sequence[FileRef]) -> Layout[FileRef] | None:
    """`tiff/<split>/<name>.tiff` and `tiff/<split>_labels/<name>.tif`: Massachusetts Roads.

    The folders define the splits; a group is the aerial photo from which tiles were cropped.
    Source: kaggle.com/datasets/balraj98/massachusetts-roads-dataset; V. Mnih, Machine Learning for
    Aerial Image Labeling, PhD thesis, University of Toronto, 2013, also for the tolerance.
    """
    inside = files_below(files, "tiff") or files
    folders = {split: (files_below(inside, split), files_below(inside, f"{split}_labels"))
               for split in _ROAD_SPLITS}  # fmt: skip
    if not any(images and masks for images, masks in folders.values()):
        return None
    labelled = (
        Labelled(
            replace(image, relative=f"{split}/{image.relative}"), mask, split,
            group=_TILE.sub("", image.stem),
        )
        for split, images_and_masks in folders.items()
        for image, mask in match_stems(location / split, *images_and_masks)
    )  # fmt: skip
    return Layout(tuple(labelled), "photo", _ROAD_TOLERANCE)


MASK_RECOGNISERS: tuple[Recogniser[FileRef], ...] = (by_two_folders, by_patient, by_road_tiles)


def files_below(files: Sequence[FileRef], folder: str) -> list[FileRef]:
    """The files in `folder` (case is ignored), with paths relative to it."""
    return [
        replace(file, relative=file.relative.partition("/")[2])
        for file in files
        if file.folder is not None and file.folder.lower() == folder
    ]


def match_stems(
    location: Path, images: Sequence[FileRef], masks: Sequence[FileRef]
) -> list[tuple[FileRef, FileRef]]:
    """Pairs of images and masks with equal stems.

    `_mask` at the end of a mask's stem is ignored, unless an image has the complete stem. NumPy
    arrays can be masks, but not images: array files in `images` are ignored.

    Raises:
        UsageError: An image has no mask or a mask no image, or two files have the same stem.
    """
    by_stem = _by_key(location, ((i.stem, i) for i in images if is_image(i.relative)))
    keys = (m.stem if m.stem in by_stem else m.stem.removesuffix(_MASK) for m in masks)
    mask_of = _by_key(location, zip(keys, masks, strict=True))
    without_mask = sorted(by_stem[key].relative for key in by_stem.keys() - mask_of.keys())
    without_image = sorted(mask_of[key].relative for key in mask_of.keys() - by_stem.keys())
    if without_mask or without_image:
        raise _unmatched(location, without_mask, without_image, len(by_stem), len(mask_of))
    return [(image, mask_of[key]) for key, image in by_stem.items()]


def _by_key(location: Path, keyed: Iterable[tuple[str, FileRef]]) -> dict[str, FileRef]:
    by_key: dict[str, list[FileRef]] = defaultdict(list)
    for key, file in keyed:
        by_key[key].append(file)
    repeated = {key: files for key, files in by_key.items() if len(files) > 1}
    if repeated:
        names = sorted(file.relative for file in repeated[min(repeated)])
        raise UsageError(
            f"`{location}` contains {len(repeated)} names more than once.",
            f"{quoted(names)} differ only in the suffix, so that images and masks cannot be "
            "paired.",
            "Rename or remove all but one of them, or list the pairs in a CSV (`image,mask`).",
        )
    return {key: files[0] for key, files in by_key.items()}


def _unmatched(
    location: Path, without_mask: list[str], without_image: list[str], images: int, masks: int
) -> UsageError:
    counts, names = [], []
    if without_mask:
        counts.append(f"{len(without_mask)} of {images} images have no mask")
        names.append(f"Without a mask: {quoted(without_mask)}.")
    if without_image:
        counts.append(f"{len(without_image)} of {masks} masks have no image")
        names.append(f"Without an image: {quoted(without_image)}.")
    return UsageError(
        f"In `{location}` {' and '.join(counts)}.",
        " ".join(names),
        "Add the missing files (a completely black mask for an image without foreground), remove "
        "the others, or list the pairs to be used in a CSV (`image,mask`).",
    )
