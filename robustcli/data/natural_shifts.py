"""Natural distribution shifts of ImageNet by name, their evaluation protocols, and ReaL labels.

All are read by `layouts`; the name decides whether a model may predict ImageNet's other classes.
ImageNet-A and ImageNet-R have 200 of the 1,000 classes, those of their folders, and their authors
evaluate only the logits of these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

from robustcli.core.errors import UsageError
from robustcli.core.names import canonical
from robustcli.data.dataset import FileRef
from robustcli.data.labels import label_space
from robustcli.data.layouts import Labelled, Layout
from robustcli.data.tables import Say

AnswerClasses: TypeAlias = Literal["auto", "all", "present"]
"""The classes that a model may predict; `auto` follows the authors of the data."""


@dataclass(frozen=True)
class NaturalShift:
    """One data set.

    `pattern` matches the names of its folder or archive in canonical spelling, `classes` is its
    number of ImageNet-1K's classes, `masked` whether its authors let a model predict only these.
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
)  # fmt: skip
_GENERAL_FOLDERS = ("val", "test", "images", "data")


def find_shift(location: Path) -> NaturalShift | None:
    """The shift whose name the folder or archive at `location` has; None for other data."""
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
    """The classes that a model may predict; None for all of its own.

    `targets` are the different classes of the images, `answers` is the value of `--answers`.

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
                f"Models are evaluated on {shift.name} with answers among its {shift.classes} "
                "classes only; with fewer the numbers would not be those of the benchmark.",
                "Complete the data; or use `--answers present` (only the classes of the data) "
                "or `--answers all` (all classes of the model).",
            )
        say(
            f"{shift.name}: models answer with its {shift.classes} classes only, as its owners "
            "evaluate (`--answers all` allows all)."
        )
    else:
        say(f"Models answer with the {len(present)} classes of the data only.")
    return present


_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})(?:\D.*)?")


def read_real_labels(path: Path, files: Sequence[FileRef], say: Say) -> Layout[str]:
    """ImageNet's validation images with their ReaL labels; images without any are left out.

    `path` is `real.json`, a list of the classes of each validation image in their order; `files`
    are images named `ILSVRC2012_val_00000001...`.

    Raises:
        UsageError: The file is not such a list, or an image is not one of those.

    Source: L. Beyer and others, Are we done with ImageNet?, 2020; github.com/google-research/
    reassessed-imagenet.
    """
    classes = _real_list(path)
    wnids = label_space("imagenet-1k").ids
    labelled = []
    for file in files:
        match = _VALIDATION.fullmatch(PurePosixPath(file.relative).name)
        number = int(match[1]) if match else 0
        if not 0 < number <= len(classes):
            raise UsageError(
                f"`{path}` has no labels for `{file.relative}`.",
                "It has those of `ILSVRC2012_val_00000001` to "
                f"`ILSVRC2012_val_{len(classes):08d}`, by the number in the name.",
                "Name ImageNet's validation images with their own names.",
            )
        names = [wnids[index] for index in classes[number - 1]]
        if names:
            labelled.append(Labelled(file, names[0], also=tuple(names[1:])))
    if len(labelled) < len(files):
        say(
            f"ReaL: {len(files) - len(labelled):,} of {len(files):,} images have no label and are "
            "left out, as published."
        )
    return Layout(tuple(labelled))


def _real_list(path: Path) -> list[list[int]]:
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
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
            f"`{path}` is no list of ReaL labels.",
            "Expected a list with a list of classes (0 to 999) for each validation image.",
            "Use `real.json` of github.com/google-research/reassessed-imagenet.",
        )
    return [list(dict.fromkeys(indices)) for indices in classes]
