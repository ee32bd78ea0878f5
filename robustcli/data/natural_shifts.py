"""Natural distribution shifts of ImageNet by name, their evaluation protocols, and ReaL labels.

The name of the data set determines which classes a model may predict. ImageNet-A and ImageNet-R
have 200 of the 1,000 classes of ImageNet, one folder for each, and their authors evaluate only the
logits of these classes. The folders of ObjectNet are objects, each of which can correspond to
several classes of ImageNet. The folders of LAION-C are superclasses of ImageNet's classes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

from robustcli.core.errors import UsageError
from robustcli.core.io import parse_json
from robustcli.core.names import canonical, counted
from robustcli.data.dataset import FileRef
from robustcli.data.labels import LabelSpace, read_label_space
from robustcli.data.layouts import Labelled, Layout
from robustcli.data.tables import Say

AnswerClasses: TypeAlias = Literal["auto", "all", "present"]
"""Classes that a model may predict: as in the authors' evaluation, all, or those in the data."""


@dataclass(frozen=True)
class NaturalShift:
    """A data set with a natural distribution shift.

    Args:
        name: Name of the data set.
        pattern: Regular expression for the name of its folder or archive in canonical spelling.
        classes: Number of its classes of ImageNet-1K.
        masked: Whether the authors evaluate only the logits of these classes.
        source: Publication.
    """

    name: str
    pattern: str
    classes: int
    masked: bool
    source: str


NATURAL_SHIFTS = (
    NaturalShift(
        "ImageNet-A", r"imagenet-?a", 200, True,
        "D. Hendrycks and others, Natural adversarial examples, CVPR 2021",
    ),
    NaturalShift(
        "ImageNet-R", r"imagenet-?r", 200, True,
        "D. Hendrycks and others, The many faces of robustness, ICCV 2021",
    ),
    NaturalShift(
        "ImageNet-Sketch", r"imagenet-?sketch|sketch", 1000, False,
        "H. Wang and others, Learning robust global representations by penalizing local "
        "predictive power, NeurIPS 2019",
    ),
    NaturalShift(
        "ImageNet-V2", r"imagenet-?v2.*", 1000, False,
        "B. Recht and others, Do ImageNet classifiers generalize to ImageNet?, ICML 2019; its "
        "folders 0 to 999 are numbers of classes",
    ),
    NaturalShift(
        "ObjectNet", r"objectnet.*", 0, True,
        "A. Barbu and others, ObjectNet: a large-scale bias-controlled dataset for pushing the "
        "limits of object recognition models, NeurIPS 2019; how many classes is in its own table",
    ),
)  # fmt: skip
_GENERAL_FOLDERS = ("val", "test", "images", "data")


def find_shift(location: Path) -> NaturalShift | None:
    """The data set with the name of the folder or archive at `location`; None for others."""
    location = location.resolve()
    names = [location.name.partition(".")[0]]
    if names[0].lower() in _GENERAL_FOLDERS:
        names.append(location.parent.name)
    spellings = [canonical(name) for name in names]
    return next(
        (s for s in NATURAL_SHIFTS if any(re.fullmatch(s.pattern, name) for name in spellings)),
        None,
    )


def allowed_answers(
    location: Path, shift: NaturalShift | None, targets: Collection[int], answers: AnswerClasses,
    say: Say,
) -> tuple[int, ...] | None:  # fmt: skip
    """Indices of the classes that a model may predict; None for all.

    Args:
        location: Path of the data set, for messages.
        shift: The recognised data set, if any.
        targets: Indices of the classes of the images.
        answers: Value of `--answers`.
        say: Receives a note for the user about a restriction.

    Raises:
        UsageError: The authors' evaluation was requested, but classes are missing.
    """
    present = tuple(sorted(targets))
    if answers == "all" or (answers == "auto" and (shift is None or not shift.masked)):
        return None
    if answers == "auto" and shift is not None:
        if len(present) != shift.classes:
            raise UsageError(
                f"`{location}` has {len(present)} of the {shift.classes} classes of {shift.name}.",
                f"On {shift.name}, models may only predict its {shift.classes} classes; with "
                "fewer classes the scores would not be comparable with those of the benchmark.",
                "Complete the data, or use `--answers present` (only the classes in the data) or "
                "`--answers all` (all classes of the model).",
            )
        say(
            f"{shift.name}: models may only predict its {shift.classes} classes, as in the "
            "evaluation of its authors (`--answers all` allows all classes)."
        )
    else:
        say(f"Models may only predict the {len(present)} classes in the data.")
    return present


_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})(?:\D.*)?")


def read_real_labels(path: Path, files: Sequence[FileRef], say: Say) -> Layout[str]:
    """ImageNet's validation images with their ReaL labels; images without labels are excluded.

    Args:
        path: `real.json`, a list with the class indices of each validation image in order.
        files: Images with names like `ILSVRC2012_val_00000001.JPEG`.
        say: Receives a note about excluded images.

    Raises:
        UsageError: The file is not such a list, or the name of an image is not of this form.

    Source: L. Beyer and others, Are we done with ImageNet?, 2020; github.com/google-research/
    reassessed-imagenet.
    """
    classes = _real_list(path)
    wnids = read_label_space("imagenet-1k").ids
    labelled = []
    for file in files:
        match = _VALIDATION.fullmatch(PurePosixPath(file.relative).name)
        number = int(match[1]) if match else 0
        if not 0 < number <= len(classes):
            raise UsageError(
                f"`{path}` has no labels for `{file.relative}`.",
                "It contains the labels of `ILSVRC2012_val_00000001` to "
                f"`ILSVRC2012_val_{len(classes):08d}`, identified by the number in the file name.",
                "Use the original file names of ImageNet's validation images.",
            )
        names = [wnids[index] for index in classes[number - 1]]
        if names:
            labelled.append(Labelled(file, names[0], also=tuple(names[1:])))
    if len(labelled) < len(files):
        say(
            f"ReaL: {len(files) - len(labelled):,} of {len(files):,} images have no label and are "
            "excluded, as in the published evaluation."
        )
    return Layout(tuple(labelled))


def _real_list(path: Path) -> list[list[int]]:
    try:
        classes = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"`{path}` cannot be read as JSON.", f"{error}.", "Download `real.json` again."
        ) from error
    is_valid = isinstance(classes, list) and all(
        isinstance(indices, list) and all(type(i) is int and 0 <= i < 1000 for i in indices)
        for indices in classes
    )
    if not is_valid:
        raise UsageError(
            f"`{path}` is not a list of ReaL labels.",
            "Expected a list with a list of classes (0 to 999) for each validation image.",
            "Use `real.json` of github.com/google-research/reassessed-imagenet.",
        )
    return [list(dict.fromkeys(indices)) for indices in classes]


OBJECTNET_TABLES = (
    "mappings/folder_to_objectnet_label.json", "mappings/objectnet_to_imagenet_1k.json",
)  # fmt: skip
OBJECTNET_BORDER = 2
"""Width in pixels of the red border, which the authors' loader cuts off."""


def read_objectnet(
    location: Path, files: Sequence[FileRef], texts: Sequence[FileRef], say: Say
) -> tuple[Layout[str], int] | None:
    """ObjectNet in its published layout: `images/OBJECT/NAME.png`, and tables in `mappings/`.

    A prediction is correct if it is any of the classes of the object. Images of objects without a
    class in ImageNet are excluded.

    Args:
        location: Path of the data set, for messages.
        files: The images.
        texts: The JSON files.
        say: Receives a note about excluded images.

    Returns:
        The images, and the number of ImageNet's classes among their objects; None if the tables are
        missing.

    Raises:
        UsageError: A table cannot be read, or contains a class that is not in ImageNet.

    Source: github.com/abarbu/objectnet-template-pytorch (the border); the same scoring in R. Taori
    and others, Measuring robustness to natural distribution shifts in image classification, 2020.
    """
    tables = [next((t for t in texts if f"/{t.relative}".endswith(f"/{name}")), None)
              for name in OBJECTNET_TABLES]  # fmt: skip
    folders, objects = (None if table is None else _table_of(location, table) for table in tables)
    if folders is None or objects is None:
        return None
    space = read_label_space("imagenet-1k")
    classes = {
        name: tuple(_imagenet_class(location, space, label) for label in labels.split("; "))
        for name, labels in objects.items()
    }
    labelled = []
    for file in files:
        ids = classes.get(folders.get(PurePosixPath(file.relative).parent.name, ""))
        if ids is not None:
            bordered = replace(file, border=OBJECTNET_BORDER)
            labelled.append(Labelled(bordered, ids[0], also=ids[1:]))
    say(
        f"ObjectNet: {len(labelled):,} images of objects that are classes of ImageNet; "
        f"{counted(len(files) - len(labelled), 'image')} of other objects excluded. "
        f"{OBJECTNET_BORDER} pixels of border are cropped."
    )
    return Layout(tuple(labelled)), len({wnid for ids in classes.values() for wnid in ids})


def _table_of(location: Path, file: FileRef) -> dict[str, str]:
    try:
        table = parse_json(file.read())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"`{file.relative}` of `{location}` cannot be read as JSON.", f"{error}.",
            "Unpack ObjectNet again.",
        ) from error  # fmt: skip
    if not isinstance(table, dict) or not all(isinstance(text, str) for text in table.values()):
        raise UsageError(
            f"`{file.relative}` of `{location}` is not a table of ObjectNet.",
            "Expected a JSON object whose values are strings.", "Unpack ObjectNet again.",
        )  # fmt: skip
    return table


def _imagenet_class(location: Path, space: LabelSpace, label: str) -> str:
    """The id of the class with ObjectNet's `label`, its names separated by commas."""
    indices = {space.index_of(name.strip()) for name in (label, *label.split(","))} - {None}
    if len(indices) != 1:
        raise UsageError(
            f"`{OBJECTNET_TABLES[1]}` of `{location}` contains the unknown class `{label}`.",
            "It must be the names of a class of ImageNet-1K.",
            "Unpack ObjectNet again.",
        )
    return space.ids[next(index for index in indices if index is not None)]


@dataclass(frozen=True)
class Superclasses:
    """Superclasses that each consist of several classes of ImageNet-1K.

    Args:
        space: Label space of the superclasses.
        members: Indices of the classes in each superclass.
    """

    space: LabelSpace
    members: tuple[tuple[int, ...], ...]


@cache
def laion_c() -> Superclasses:
    """The 16 superclasses of LAION-C.

    Source: F. Li and others, LAION-C: an out-of-distribution benchmark for web-scale vision models,
    ICML 2025; `laionc/mappings/category_mapping.json` of github.com/FanfeiLi/LAION-C.
    """
    text = (package_files("robustcli") / "assets" / "laion-c.txt").read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines()]
    index = {wnid: number for number, wnid in enumerate(read_label_space("imagenet-1k").ids)}
    names = tuple(line[0] for line in lines)
    members = tuple(tuple(sorted(index[wnid] for wnid in line[1:])) for line in lines)
    return Superclasses(LabelSpace("laion-c", names, names), members)


def find_superclasses(location: Path) -> Superclasses | None:
    """LAION-C's superclasses if the folders in `location` have their 16 names; else None."""
    if not location.is_dir():
        return None
    folders = {path.name for path in location.iterdir() if path.is_dir() and path.name[0] != "."}
    return laion_c() if folders == set(laion_c().space.ids) else None
