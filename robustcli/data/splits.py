"""Training, validation and test parts: drawn by group, or by image as the tumour paper did."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, cast, get_args

import numpy as np

from robustcli.core.errors import UsageError
from robustcli.core.io import write_text
from robustcli.core.seeds import identity_seed
from robustcli.data.class_layouts import listed
from robustcli.data.dataset import ImageIndex, ImageRef, IndexT, PairIndex
from robustcli.data.tables import Column, read_columns

# Which groups are held out: a pure function of groups and seed, and sklearn's way of drawing.


HELD_OUT = 0.1


def parts_by_group(index: PairIndex, *, seed: int) -> dict[str, set[str]]:
    """The groups of `train`, `val` and `test`; see `splits.patient_splits`.

    Raises:
        UsageError: There are too few groups for three parts.
    """
    parts: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for pair in index.pairs:
        parts[pair.split or "train"].add(pair.group)
    missing = [name for name in ("test", "val") if not parts[name]]
    free = sorted(parts["train"], key=lambda group: (identity_seed(seed, group), group))
    if len(free) <= len(missing):
        raise _too_few_groups(index, len(free), missing)
    if missing:
        tenth = max(1, round(HELD_OUT * len(index.groups)))
        count = min(tenth, (len(free) - 1) // len(missing))
        ends = {"test": free[:count], "val": free[-count:]}
        for name in missing:
            parts[name] = set(ends[name])
            parts["train"] -= parts[name]
    return parts


def shuffled_in_two(ids: Sequence[str], first: int, seed: int) -> tuple[list[str], list[str]]:
    """`first` of `ids` and the others, both in random order, as scikit-learn draws them.

    Source: sklearn.model_selection.ShuffleSplit: a permutation of the legacy generator, of which
    the test part comes first.
    """
    permutation = np.random.RandomState(seed).permutation(len(ids))
    others = len(ids) - first
    return [ids[i] for i in permutation[others:]], [ids[i] for i in permutation[:others]]


def _too_few_groups(index: PairIndex, free: int, missing: list[str]) -> UsageError:
    kind = index.grouping
    groups = index.groups
    found = f"all images belong to the {kind} `{groups[0]}`" if len(groups) == 1 else (
        f"there {'is' if free == 1 else 'are'} {free} to draw from"
    )  # fmt: skip
    return UsageError(
        f"`{index.name}` cannot be split by {kind}.",
        f"{', '.join(['train', *missing])} need one {kind} each at least, but {found}.",
        "Name more data, leave `--limit` out, or give the images their splits in a CSV "
        f"(`image,mask,split`). `--protocol paper` splits by image instead: one {kind} is then in "
        "training and test, and the score too good.",
    )


Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
_PAPER_TRAIN, _PAPER_SEED = 0.8, 37
_HEADER = ("image_id", "group", "split")


@dataclass(frozen=True)
class Splits(Generic[IndexT]):
    """The three parts of a data set."""

    train: IndexT
    val: IndexT
    test: IndexT


def patient_splits(index: PairIndex, *, seed: int) -> Splits[PairIndex]:
    """80/10/10 % of the groups, none of them in two parts.

    Groups stand in an order drawn from (seed, group) alone: the first tenth is for test, the last
    for validation, the rest for training. So the order of files does not matter, and of the old
    groups only a few at the two borders move when others join. How many images and how many empty
    masks a part gets is left to chance: over the seeds 0 to 4, 59 to 71 % of the slices in LGG's
    parts are empty.

    Splits that the data gives are kept; a part that it does not give is drawn from its training
    groups (a tenth of all groups).

    Args:
        index: The data, perhaps with splits of its own.
        seed: Which groups.

    Raises:
        UsageError: There are too few groups for three parts.
    """
    parts = parts_by_group(index, seed=seed)
    ids = {
        name: {pair.image_id for pair in index.pairs if pair.group in groups}
        for name, groups in parts.items()
    }
    return _splits(index, ids, _how_groups(index, seed))


def paper_splits(index: PairIndex) -> Splits[PairIndex]:
    """80/10/10 % of the images, whatever their group, in the tumour paper's way.

    `train_test_split(ids, train_size=0.8, random_state=37)` over the sorted ids, then the rest
    0.5/0.5 with the same state. Its fault is kept: images of one patient lie in training and test.
    Splits that the data gives do not count. The paper's own parts cannot be had again, because its
    list came in the order of a file system.
    Source: lxaw/mamba-tumor-seg @0d60b7a, the training notebooks.

    Raises:
        UsageError: There are too few images for three parts.
    """
    ids = sorted(pair.image_id for pair in index.pairs)
    train, rest = shuffled_in_two(ids, math.floor(_PAPER_TRAIN * len(ids)), _PAPER_SEED)
    val, test = shuffled_in_two(rest, len(rest) // 2, _PAPER_SEED)
    if not (train and val and test):
        raise UsageError(
            f"`{index.name}` has too few images to split: {len(ids)}.",
            "Training, validation and test need one image each at least, at 80/10/10 %.",
            "Name more data, or leave `--limit` out.",
        )
    parts = {"train": train, "val": val, "test": test}
    return _splits(index, parts, f"by image, seed {_PAPER_SEED}")


def write_splits(path: Path, splits: Splits[Any]) -> None:
    """Writes `image_id,group,split` of every image to `path`, sorted by id, durably."""
    rows = [
        (one.image_id, one.group, name) for name in SPLITS for one in getattr(splits, name).members
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_HEADER, *sorted(rows)])
    write_text(path, text.getvalue())


def read_splits(path: Path) -> dict[str, Split]:
    """The split of each image id, as `write_splits` wrote them.

    Raises:
        UsageError: The file cannot be read, or is none of that kind.
    """
    columns = read_columns(path, (Column("image-id"), Column("split")))
    unknown = sorted(set(columns["split"]) - set(SPLITS))
    if unknown:
        raise UsageError(
            f"`{path}` names splits that do not exist.",
            f"Expected `train`, `val` or `test`, got {listed(unknown)}.",
            "Name the run anew, or restore its `splits.csv`.",
        )
    names = [cast("Split", name) for name in columns["split"]]
    return dict(zip(columns["image-id"], names, strict=True))


def _how_groups(index: PairIndex, seed: int) -> str:
    drawn = [name for name in ("val", "test") if all(p.split != name for p in index.pairs)]
    words = f"by {index.grouping}, seed {seed}"
    if len(drawn) == 2:
        return words
    return "as the data gives it" + (f", {drawn[0]} {words}" if drawn else "")


def _splits(index: PairIndex, ids: Mapping[str, Collection[str]], how: str) -> Splits[PairIndex]:
    whole = f"{index.subset}; " if index.subset else ""
    return Splits(
        *(index.part(frozenset(ids[name]), f"{whole}{name} part, split {how}") for name in SPLITS)
    )


# Training, validation and test parts of images with classes: drawn by image, class by class.


def class_splits(index: ImageIndex, *, seed: int) -> Splits[ImageIndex]:
    """80/10/10 % of each class, at least one image of every class in every part.

    Images of a class stand in an order drawn from (seed, id) alone, so the order of files does not
    matter. Parts that the data gives are kept; one that it does not give is drawn from its training
    images.

    Args:
        index: The data, perhaps with parts of its own.
        seed: Which images.

    Raises:
        UsageError: A class has too few images.
    """
    missing = [name for name in ("test", "val") if all(i.split != name for i in index.images)]
    parts: dict[str, set[str]] = {name: set() for name in SPLITS}
    for target in range(len(index.label_space.ids)):
        members = [image for image in index.images if image.target == target]
        for image in members:
            parts[image.split or "train"].add(image.image_id)
        drawn = _drawn(index, target, members, missing, seed)
        for name, ids in drawn.items():
            parts[name] |= ids
            parts["train"] -= ids
    how = _how_classes(missing, seed)
    whole = f"{index.subset}; " if index.subset else ""
    return Splits(
        *(index.part(frozenset(parts[n]), f"{whole}{n} part, split {how}") for n in SPLITS)
    )


def _drawn(
    index: ImageIndex, target: int, members: list[ImageRef], missing: list[str], seed: int
) -> Mapping[str, set[str]]:
    """Of one class, the ids of each part that is to be drawn."""
    free = [image.image_id for image in members if (image.split or "train") == "train"]
    if len(free) <= len(missing):
        raise _too_few_in_class(index, target, len(free), missing)
    free.sort(key=lambda image_id: (identity_seed("split", seed, image_id), image_id))
    tenth = max(1, round(HELD_OUT * len(members)))
    count = min(tenth, (len(free) - 1) // max(1, len(missing)))
    found: dict[str, set[str]] = defaultdict(set)
    for place, name in enumerate(missing):
        found[name] = set(free[place * count : (place + 1) * count])
    return found


def _how_classes(missing: list[str], seed: int) -> str:
    words = f"by image in each class, seed {seed}"
    if len(missing) == 2:
        return words
    return "as the data gives it" + (f", {missing[0]} {words}" if missing else "")


def _too_few_in_class(index: ImageIndex, target: int, free: int, missing: list[str]) -> UsageError:
    needed = len(missing) + 1
    parts = " and ".join(["train", *missing]) if missing else "train"
    return UsageError(
        f"The class `{index.label_space.ids[target]}` of `{index.name}` has too few images.",
        f"{parts} need one image of every class each, {needed} in all; there "
        f"{'is' if free == 1 else 'are'} {free} to draw from.",
        "Add images of that class, take its folder out, or leave `--limit` out.",
    )
