"""Error messages about unusable data, with advice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.core.names import nearest
from robustcli.data.archives import TAR_SUFFIXES, is_tar
from robustcli.data.dataset import Dataset, FileRef
from robustcli.data.labels import BUNDLED_SPACES, LabelSpace, ModelClasses, read_label_space
from robustcli.data.listing import IMAGE_SUFFIXES
from robustcli.data.named_datasets import DATASETS, LIST_DATASETS, SEGMENTATION, NamedDataset
from robustcli.data.tables import TABLE_SUFFIXES

_SHOWN = 5
_CORRUPTED = re.compile(r"(?:[^/]+/){1,3}[1-5]/[^/]+/[^/]+")  # blur/defocus_blur/3/n01440764/a.JPEG
CLASSES_IN_WORDS = "Pass the folder whose subfolders are the classes."
LAYOUTS_IN_WORDS = """Put the files into one of these layouts:
  DIR/images/NAME.png  DIR/masks/NAME.png                paired folders, at any depth
  DIR/PATIENT/NAME.tif  DIR/PATIENT/NAME_mask.tif        as LGG's kaggle_3m
  DIR/masks/NAME_CLASS.png, DIR/masks/CLASS/NAME.png     and DIR/images: one mask file per class
  DIR/imagesTr/NAME_0000.png  DIR/labelsTr/NAME.png      as nnU-Net's raw data, with dataset.json
  DIR/tiff/SPLIT/NAME.tiff  DIR/tiff/SPLIT_labels/NAME.tif  as Massachusetts Roads
  FILE.csv                                               columns image, mask, [patient], [split]"""


def quoted(names: Sequence[str]) -> str:
    """At most five of `names` in backticks, followed by the number of the remaining names."""
    suffix = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{name}`" for name in names[:_SHOWN]) + suffix


def missing_data_error(data: str, *, masks: bool) -> UsageError:
    """The error for a missing path `data`; suggests data sets with similar names."""
    close = nearest(data, (d.name for d in DATASETS if (d.label_space == SEGMENTATION) == masks))
    return UsageError(
        f"No data set was found at `{data}`.",
        f"Did you mean the data set {' or '.join(f'`{c}`' for c in close)}?"
        if close
        else "It is neither the name of a data set nor a file or folder in the current directory "
        f"(`{Path.cwd()}`).",
        f"Check the path; `{LIST_DATASETS}` lists the named data sets.",
    )


def not_cached(name: str, reason: str) -> UsageError:
    """The error for data that are not cached while the network must not be used."""
    return UsageError(
        f"`{name}` is not completely on this machine, and the network must not be used "
        "(`--offline`, `--dry-run`).",
        f"{reason[0].upper()}{reason[1:]}.",
        "Run the command once with network access: the downloaded data is kept.",
    )


def unreadable_kind(data: str) -> UsageError:
    """The error for a file `data` of an unsupported type."""
    return UsageError(
        f"`{data}` cannot be read as data.",
        f"Expected a folder, a table ({', '.join(sorted(TABLE_SUFFIXES))}), a tar "
        f"({', '.join(TAR_SUFFIXES)}) or a zip.",
        "Unpack other archives first. For a single image, pass the parent of its folder.",
    )


def has_masks(dataset: NamedDataset, model: str | None) -> UsageError:
    """The error for a data set with masks where classes are needed.

    `model` is the name of the model's label space; None in training.
    """
    fitting = "have classes" if model is None else f"are for `{model}`"
    return UsageError(
        f"`--data {dataset.name}` has masks, not classes.",
        "It is a data set for segmentation, and the model is a classifier.",
        f"`{LIST_DATASETS}` shows which data {fitting}.",
    )


def classes_not_masks(dataset: NamedDataset) -> UsageError:
    """The error for a data set with classes where masks are needed."""
    ours = ", ".join(f"`--data {d.name}`" for d in DATASETS if d.label_space == SEGMENTATION)
    return UsageError(
        f"`{dataset.name}` has no masks.",
        f"It is a data set for classification with the label space `{dataset.label_space}`.",
        f"Pass images with masks: {ours}, or your own folder.",
    )


def no_images(location: Path, todo: str) -> UsageError:
    """The error for a `location` without images; suggests a tar in that folder, else `todo`."""
    if (location / "labels.npy").is_file():
        return corruption_benchmark(location)
    tars = sorted(p.name for p in location.iterdir() if is_tar(p)) if location.is_dir() else []
    if tars:
        todo = f"To read a tar file of this folder, pass it: `--data {location / tars[0]}`."
    return UsageError(
        f"`{location}` contains no images.",
        "Files with these suffixes were searched at any depth: "
        f"{', '.join(sorted(IMAGE_SUFFIXES))}.",
        todo,
    )


def no_such_folder(data: str, dataset: Dataset, folder: str) -> UsageError:
    """The error for a `folder` without images of `dataset`, which the user named `data`."""
    ids = [sample.image_id for sample in dataset.samples]
    counts = Counter(image_id.rpartition("/")[0] for image_id in ids if "/" in image_id)
    shown = ", ".join(f"`{name}` ({count})" for name, count in counts.most_common(_SHOWN))
    return UsageError(
        f"`{data}` has no folder `{folder}`.",
        f"Its folders: {shown}{' and others' if len(counts) > _SHOWN else ''}."
        if counts
        else "It has no subfolders.",
        f"Write `--data {data}:FOLDER` with one of these folders, or omit `:{folder}`.",
    )


def no_classes(location: Path, files: Sequence[FileRef], classes: ModelClasses) -> UsageError:
    """The error for images at `location` whose classes are unknown."""
    folders = _folders(files)
    if not folders:
        return _flat(location, classes)
    if all(_CORRUPTED.fullmatch(file.relative) for file in files):
        return corruption_benchmark(location)
    paths = [file.relative.split("/") for file in files]
    inner = [
        name for name in sorted(folders)
        if classes.fit({path[1] for path in paths if path[0] == name and len(path) > 2})
    ]  # fmt: skip
    if inner:
        return UsageError(
            f"`{location}` is the parent of the class folders.",
            f"The classes are the folders in {quoted(inner)}, which is itself not a class.",
            f"Use `--data {location / inner[0]}`.",
        )
    return unknown_labels(location, folders, classes, "folder")


def corruption_benchmark(location: Path) -> UsageError:
    """The error for a corruption benchmark, such as ImageNet-C or CIFAR-10-C, at `location`."""
    return UsageError(
        f"`{location}` contains a corruption benchmark, not clean images.",
        "Its images are transformed: each is compared with the clean image of the same name.",
        f"Pass it as `--published {location} --transform 'published/*'`, and the clean images "
        "with `--data`. If you do not have the clean images, pass a single folder "
        "`CORRUPTION/SEVERITY` with `--data`.",
    )


def no_own_classes(location: Path, files: Sequence[FileRef]) -> UsageError:
    """The error for training images at `location` that are not sorted into two or more classes."""
    folders = _folders(files)
    if len(folders) == 1:
        return one_class(location, folders.pop())
    return UsageError(
        f"`{location}` does not contain the classes of its images.",
        "Training needs the class of every image, and at least two classes.",
        f"Sort the images into a folder per class (`{location}/CLASS/IMAGE`, optionally below "
        "`train`, `val` and `test`), or pass a CSV with the columns `path` and `label`.",
    )


def one_class(location: Path, name: str) -> UsageError:
    """The error for a data set at `location` with the single class `name`."""
    return UsageError(
        f"`{location}` has one class only, `{name}`.",
        "A classifier needs at least two classes.",
        "Pass the parent of the class folders, or data with more classes.",
    )


def unknown_labels(
    location: Path, labels: Collection[str], classes: ModelClasses, kind: str = "label"
) -> UsageError:
    """The error for `labels` that match no label space; `kind` is `folder` or `label`."""
    if all(label.isdecimal() for label in labels):
        return _only_numbers(location, labels, classes.label_space, kind)
    bundled = [read_label_space(name) for name in BUNDLED_SPACES]
    space = classes.label_space or max(
        bundled, key=lambda s: sum(s.index_of(label) is not None for label in labels)
    )
    unknown = sorted(label for label in labels if space.index_of(label) is None)
    matched = f"The label space `{space.name}` contains none of them."
    if len(unknown) < len(labels):
        close = nearest(unknown[0], (*space.names, *space.ids), most=1)
        guess = f" (`{unknown[0]}`: did you mean `{close[0]}`?)" if close else ""
        matched = (
            f"The label space `{space.name}` contains {len(labels) - len(unknown)} of them, but "
            f"not {quoted(unknown)}{guess}."
        )
    return UsageError(
        f"The {kind}s of `{location}` match no known label space."
        if classes.label_space is None
        else f"The {kind}s of `{location}` are not all classes of `{space.name}`.",
        f"It has {len(labels)}: {quoted(sorted(labels))}. {matched}",
        "Name the classes with `--label-space FILE` (one class per line, in the order of the "
        "model's outputs), or correct the data.",
    )


def other_label_space(location: Path, data: LabelSpace, model: str) -> UsageError:
    """The error for data whose label space is not the one of the model."""
    return UsageError(
        f"`{location}` does not fit the model.",
        f"Its classes are `{data.name}` ({len(data.ids)} classes), but the model predicts classes "
        f"of `{model}`.",
        f"Choose a model for `{data.name}`, or data for `{model}` (`{LIST_DATASETS}`).",
    )


def _flat(location: Path, classes: ModelClasses) -> UsageError:
    if classes.fit({location.resolve().name}):
        return UsageError(
            f"`{location}` is the folder of a single class.",
            f"It contains images directly, and `{location.resolve().name}` is the name of a class.",
            f"Pass its parent folder: `--data {location.resolve().parent}`.",
        )
    return UsageError(
        f"`{location}` does not contain the classes of its images.",
        "It contains images directly, without class folders, and the file names contain no wnids.",
        "Add `--labels FILE` (lines `FILE LABEL`), sort the images into class folders, or pass a "
        "CSV with the columns `path` and `label`.",
    )


def _only_numbers(
    location: Path, labels: Collection[str], space: LabelSpace | None, kind: str
) -> UsageError:
    what = f"The {kind}s of `{location}` are numbers, {quoted(sorted(labels, key=int))}."
    if space is None:
        return UsageError(
            what,
            "It is not known which label space these indices refer to.",
            f"Specify it, for example `--label-space {BUNDLED_SPACES[0]}` (0-based, in its order).",
        )
    return UsageError(
        what,
        f"An index of `{space.name}` is between 0 and {len(space.ids) - 1}. The numbers 1 to 1000 "
        "of ILSVRC2012_validation_ground_truth.txt are ILSVRC ids, not indices. Their order "
        "differs, so they are not accepted.",
        "Use wnids (`n01440764`), class names or 0-based indices.",
    )


def _folders(files: Sequence[FileRef]) -> set[str]:
    return {file.folder for file in files if file.folder is not None}


def no_masks(location: Path, files: Sequence[FileRef]) -> UsageError:
    """The error for images at `location` in an unknown layout of images and masks."""
    is_flat = all(file.folder is None for file in files)
    is_one_patient = is_flat and any(file.stem.endswith("_mask") for file in files)
    if location.name.lower() in ("images", "masks") or is_one_patient:
        return UsageError(
            f"`{location}` is only one of the folders of a data set.",
            "The folders of the images and of the masks are both needed.",
            f"Pass its parent folder: `--data {location.resolve().parent}`.",
        )
    return UsageError(
        f"`{location}` has no known layout of images and masks.",
        f"It contains {len(files)} images, such as `{min(file.relative for file in files)}`.",
        LAYOUTS_IN_WORDS,
    )


def groups_in_two_splits(
    location: Path, divided: Sequence[str], groups: int, grouping: str
) -> UsageError:
    """The error for groups (`divided`, of `groups` in total) that are in more than one split."""
    return UsageError(
        f"`{location}` puts {len(divided)} of {groups} groups into more than one split.",
        f"If a {grouping} is in both training and test, the test scores are too high: "
        f"{quoted(divided)}.",
        "Assign all images of a group to the same split, or remove the splits from the data: they "
        "are then drawn at random.",
    )
