"""Selects images of data sets: subsets, and splits into training, validation and test.

Both are pure functions of image ids and a seed, so they are equal on all machines.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from robustcli.core.errors import UsageError
from robustcli.core.io import write_text
from robustcli.core.names import counted, marked_cell, unmarked_cell
from robustcli.core.seeds import identity_seed
from robustcli.data.advice import quoted
from robustcli.data.dataset import Dataset, FileRef, Sample
from robustcli.data.tables import Column, read_columns


def take(
    dataset: Dataset, *, limit: int | None, seed: int, per_class: int | None = None
) -> Dataset:
    """The requested subset of `dataset`, sorted by id.

    Each image has a random rank in its class (for masks: in its group), which depends only on its
    id and the seed. Images are selected by rank, in a random order within a rank. So 10 images per
    class are a subset of 15 per class with the same seed, a smaller limit selects a subset of a
    larger one, and images added to a class do not reorder the others. For masks, the first image of
    every split of the data set is selected before all others.

    Args:
        dataset: The complete data set.
        limit: Largest number of images, applied after `per_class` and distributed evenly over
            classes or groups; None for all.
        seed: Seed of the ranks.
        per_class: Number of images of each class; None for all.

    Raises:
        UsageError: A number is below 1, or a class has fewer than `per_class` images.
    """
    _check_numbers(per_class, limit)
    if per_class is None and (limit is None or limit >= len(dataset.samples)):
        return dataset
    has_classes = dataset.label_space is not None
    ranked = _ranked(dataset, seed)
    limits = []
    if per_class is not None:
        _check_classes(dataset, per_class)
        ranked = [(rank, sample) for rank, sample in ranked if rank < per_class]
        limits.append(f"{per_class} per class")
    samples = [sample for _, sample in ranked]
    if limit is not None and limit < len(samples):
        if not has_classes:  # the first sample of each split comes before all others
            firsts = {sample.split: sample for sample in reversed(samples)}
            samples.sort(key=lambda sample: firsts[sample.split] is not sample)
        samples = samples[:limit]
        groups = "classes" if has_classes else f"{dataset.grouping}s"
        how = "selected at random" if groups == "images" else f"distributed over the {groups}"
        limits.append("1 image" if limit == 1 else f"{limit} images {how}")
    return _with_subset(dataset, samples, f"{', '.join(limits)}, seed {seed}")


def take_ids(ids: Iterable[str], *, limit: int | None, seed: int) -> frozenset[str]:
    """The ids of the images that `take` selects from images without known classes.

    The images are distributed evenly over their folders. With one folder per class, the selection
    equals that from the images with their classes.
    """
    files = [FileRef(image_id, Path(image_id)) for image_id in ids]
    samples = tuple(Sample(file, file, file.relative.rpartition("/")[0]) for file in files)
    selected = take(Dataset("files", "", samples, grouping="folder"), limit=limit, seed=seed)
    return frozenset(sample.image_id for sample in selected.samples)


def subset_in_words(count: int, total: int, noun: str, seed: int) -> str:
    """A sentence that announces a selection of `take_ids`; `noun` is the singular of an image."""
    return (
        f"`--limit`: using {count:,} of {counted(total, noun)}, distributed at random over the "
        f"folders (seed {seed})."
    )


QUICK_IMAGES = 381
"""Number of images that determine top-1 accuracy to within 5 percentage points.

Half the width of the 95 % Wilson interval is largest for a proportion of one half:
z / (2 sqrt(n + z^2)) with z = 1.96: at most 0.05 from n = 381 on.
"""
QUICK_GROUPS, QUICK_PER_GROUP = 62, 4
"""Number of groups that determine the mean Dice score to within 0.05, and of images per group.

The number of groups assumes that the standard deviation of the Dice score over groups is
QUICK_SPREAD: 1.96 QUICK_SPREAD / sqrt(groups) is at most 0.05 from 62 groups on.
"""
QUICK_SPREAD = 0.2


def quick_look(dataset: Dataset, *, seed: int) -> Dataset:
    """A small subset of `dataset` for a first estimate of scores, selected by the ranks of `take`.

    With classes: QUICK_IMAGES images, or one image of each class if more classes exist. With masks:
    at most QUICK_PER_GROUP images of each of QUICK_GROUPS groups. A smaller data set is returned
    unchanged.
    """
    ranked = _ranked(dataset, seed)
    if dataset.label_space is not None:
        classes = len({sample.target for sample in dataset.samples})
        samples = [sample for _, sample in ranked][: max(QUICK_IMAGES, classes)]
        contents = f"{len(samples)} images distributed over the classes"
    else:
        groups = list(dict.fromkeys(sample.group for _, sample in ranked))[:QUICK_GROUPS]
        samples = [s for rank, s in ranked if rank < QUICK_PER_GROUP and s.group in set(groups)]
        spread = (
            "" if dataset.grouping == "image" else f" of {counted(len(groups), dataset.grouping)}"
        )
        contents = f"{counted(len(samples), 'image')}{spread}"
    if len(samples) == len(dataset.samples):
        return dataset
    return _with_subset(dataset, samples, f"quick look: {contents}, seed {seed}")


def _with_subset(dataset: Dataset, samples: Sequence[Sample], words: str) -> Dataset:
    return replace(
        dataset,
        samples=tuple(sorted(samples, key=lambda sample: sample.image_id)),
        subset=f"{dataset.subset}: {words}" if dataset.subset else words,
    )


def _check_numbers(per_class: int | None, limit: int | None) -> None:
    for option, number in (("--per-class", per_class), ("--limit", limit)):
        if number is not None and number < 1:
            raise UsageError(
                f"`{option} {number}` selects no images.",
                "Expected an integer of at least 1.",
                f"Omit `{option}` to use all images.",
            )


def _ranked(dataset: Dataset, seed: int) -> list[tuple[int, Sample]]:
    """The samples and their ranks in their class or group, in the order of selection."""
    strata: dict[int | str, list[tuple[int, str, Sample]]] = defaultdict(list)
    for sample in dataset.samples:
        stratum = sample.group if dataset.label_space is None else sample.target
        strata[stratum].append((identity_seed(seed, sample.image_id), sample.image_id, sample))
    ranked = []
    for stratum_samples in strata.values():
        stratum_samples.sort(key=lambda keyed: keyed[:2])
        ranked += [(rank, *keyed) for rank, keyed in enumerate(stratum_samples)]
    ranked.sort(key=lambda keyed: keyed[:3])
    return [(rank, sample) for rank, _, _, sample in ranked]


def _check_classes(dataset: Dataset, per_class: int) -> None:
    counts = Counter(sample.target for sample in dataset.samples)
    smallest = min(counts, key=lambda target: (counts[target], target))
    if counts[smallest] < per_class:
        raise UsageError(
            f"`--per-class {per_class}` is more than the data set has.",
            f"The smallest class, `{dataset.classes.ids[smallest]}` "
            f"({dataset.classes.names[smallest]}), has {counts[smallest]}.",
            f"Use `--per-class {counts[smallest]}` or less, or `--limit`.",
        )


# Splits by class, by group, or by image.

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
HELD_OUT = 0.1  # fraction of the test split, and of the validation split
_PAPER_TRAIN, _PAPER_SEED = 0.8, 37
_HEADER = ("image_id", "group", "split")


@dataclass(frozen=True)
class Splits:
    """The three splits of a data set."""

    train: Dataset
    val: Dataset
    test: Dataset


def split_dataset(dataset: Dataset, *, seed: int) -> Splits:
    """Splits the images of each class 80/10/10 %; images with masks by their groups.

    Each class has at least one image in every split, and no group is in two splits. Splits by group
    do not control the number of images and of empty masks: over the seeds 0 to 4, 59 to 71 % of the
    slices in LGG's splits are empty.

    The random order depends only on the seed and on the id of the image or the name of the group.
    So the order of files has no effect, and few groups change their split when others are added.
    Splits defined by the data set are kept; a missing split is sampled from its training images.

    Raises:
        UsageError: A class has too few images for three splits, or there are too few groups.
    """
    missing = [n for n in ("test", "val") if all(s.split != n for s in dataset.samples)]
    if dataset.label_space is None:
        ids, unit = _by_group(dataset, missing, seed), dataset.grouping
    else:
        ids, unit = _by_class(dataset, missing, seed), "image in each class"
    drawn = f"by {unit}, seed {seed}"
    from_data = "as defined by the data set" + (f", {missing[0]} {drawn}" if missing else "")
    return _splits(dataset, ids, drawn if len(missing) == 2 else from_data)


def paper_splits(dataset: Dataset) -> Splits:
    """Splits the images 80/10/10 %, regardless of their groups, as in the tumour paper.

    The method is `train_test_split(ids, train_size=0.8, random_state=37)` over the sorted ids, then
    0.5/0.5 for the remaining ids with the same state. The flaw of the method is kept: images of one
    patient are in both training and test. Splits defined by the data set are ignored. The exact
    splits of the paper cannot be reproduced, because its list had the order of a file system.

    The images of validation and test have the random order of the method, because the paper pools
    the dice over batches of consecutive images. Sorted by id, a batch would have the slices of few
    patients, and the mean over batches would be lower.

    Source: lxaw/mamba-tumor-seg @0d60b7a, the training notebooks.

    Raises:
        UsageError: There are too few images for three splits.
    """
    ids = sorted(sample.image_id for sample in dataset.samples)
    train, held_out = shuffled_in_two(ids, math.floor(_PAPER_TRAIN * len(ids)), _PAPER_SEED)
    val, test = shuffled_in_two(held_out, len(held_out) // 2, _PAPER_SEED)
    if not (train and val and test):
        raise UsageError(
            f"`{dataset.name}` has too few images to split: {len(ids)}.",
            "Training, validation and test need at least one image each, at 80/10/10 %.",
            "Use more data, or omit `--limit`.",
        )
    parts = {"train": train, "val": val, "test": test}
    splits = _splits(dataset, parts, f"by image, seed {_PAPER_SEED}")
    return replace(splits, val=_in_order(splits.val, val), test=_in_order(splits.test, test))


def _in_order(part: Dataset, ids: Sequence[str]) -> Dataset:
    samples = {sample.image_id: sample for sample in part.samples}
    return replace(part, samples=tuple(samples[image_id] for image_id in ids))


def shuffled_in_two(ids: Sequence[str], first: int, seed: int) -> tuple[list[str], list[str]]:
    """Randomly selects `first` of `ids`; returns these and the others, both in random order.

    Source: sklearn.model_selection.ShuffleSplit, which uses a permutation of NumPy's legacy
    generator: the test part first, then the training part.
    """
    permutation = np.random.RandomState(seed).permutation(len(ids))
    other_count = len(ids) - first
    return [ids[i] for i in permutation[other_count:]], [ids[i] for i in permutation[:other_count]]


def _by_group(dataset: Dataset, missing: Sequence[str], seed: int) -> dict[str, set[str]]:
    """The image ids of each split: of the ordered groups, the first tenth is test, the last val.

    The random order depends only on seed and group.
    """
    groups: dict[str, set[str]] = {name: set() for name in SPLITS}
    for sample in dataset.samples:
        groups[sample.split or "train"].add(sample.group)
    free = sorted(groups["train"], key=lambda group: (identity_seed(seed, group), group))
    if len(free) <= len(missing):
        raise _too_few_groups(dataset, len(free), missing)
    count = _held_out(len(dataset.groups), len(free), len(missing))
    drawn = {"test": free[:count], "val": free[-count:]}
    for name in missing:
        groups[name] = set(drawn[name])
        groups["train"] -= groups[name]
    return {
        name: {sample.image_id for sample in dataset.samples if sample.group in members}
        for name, members in groups.items()
    }


def _by_class(dataset: Dataset, missing: Sequence[str], seed: int) -> dict[str, set[str]]:
    """The image ids of each split; the random order depends only on seed and image id."""
    ids: dict[str, set[str]] = {name: set() for name in SPLITS}
    by_class: dict[int, list[Sample]] = defaultdict(list)
    for sample in dataset.samples:
        by_class[sample.target].append(sample)
    _check_trained_classes(dataset, by_class)
    for target, class_id in enumerate(dataset.classes.ids):
        members = by_class[target]
        for sample in members:
            ids[sample.split or "train"].add(sample.image_id)
        free = [sample.image_id for sample in members if (sample.split or "train") == "train"]
        free.sort(key=lambda image_id: (identity_seed("split", seed, image_id), image_id))
        if len(free) <= len(missing):
            raise _too_few_in_class(dataset, class_id, len(free), missing)
        count = _held_out(len(members), len(free), len(missing))
        for number, name in enumerate(missing):
            drawn = set(free[number * count : (number + 1) * count])
            ids[name] |= drawn
            ids["train"] -= drawn
    return ids


def _check_trained_classes(dataset: Dataset, by_class: Mapping[int, Sequence[Sample]]) -> None:
    """Raises UsageError if the splits of the data set have a class without training images."""
    untrained = {
        dataset.classes.ids[target]: samples
        for target, samples in sorted(by_class.items())
        if all(sample.split not in (None, "train") for sample in samples)
    }
    if untrained:
        parts = sorted({str(sample.split) for samples in untrained.values() for sample in samples})
        raise UsageError(
            f"The splits of `{dataset.name}` have different classes.",
            f"{quoted(list(untrained))} {'is' if len(untrained) == 1 else 'are'} in "
            f"{' and '.join(f'`{part}`' for part in parts)}, but not in `train`, so that the "
            "network cannot learn it.",
            "Add training images of every class, or remove these folders from the other splits.",
        )


def _held_out(total: int, free: int, missing: int) -> int:
    """Size of each missing split: HELD_OUT of `total`, but at least one of `free` remains."""
    return min(max(1, round(HELD_OUT * total)), (free - 1) // max(1, missing))


def _too_few_groups(dataset: Dataset, free: int, missing: Sequence[str]) -> UsageError:
    kind, groups = dataset.grouping, dataset.groups
    if len(groups) == 1 and kind != "image":
        available = f"all images belong to the {kind} `{groups[0]}`"
    else:
        available = f"only {free} {'is' if free == 1 else 'are'} available"
    todo = "Use more images, or omit `--limit`."
    if kind != "image":
        todo = (
            "Use more data, omit `--limit`, or define the split of each image in a CSV "
            f"(`image,mask,split`). `--protocol paper` splits by image instead: the same {kind} is "
            "then in training and test, and the score is too high."
        )
    return UsageError(
        f"`{dataset.name}` cannot be split by {kind}.",
        f"{', '.join(['train', *missing])} need at least one {kind} each, but {available}.",
        todo,
    )


def _too_few_in_class(
    dataset: Dataset, class_id: str, free: int, missing: Sequence[str]
) -> UsageError:
    return UsageError(
        f"The class `{class_id}` of `{dataset.name}` has too few images.",
        f"{' and '.join(['train', *missing])} need at least one image of every class each, "
        f"{len(missing) + 1} in all; only {free} {'is' if free == 1 else 'are'} available.",
        "Add images of that class, remove its folder, or omit `--limit`.",
    )


def _splits(dataset: Dataset, ids: Mapping[str, Collection[str]], method: str) -> Splits:
    subset = f"{dataset.subset}; " if dataset.subset else ""
    return Splits(
        *(dataset.part(frozenset(ids[n]), f"{subset}{n} part, split {method}") for n in SPLITS)
    )


def write_splits(path: Path, splits: Splits) -> None:
    """Writes a CSV with `image_id,group,split` of every image, sorted by id, to `path`, durably.

    An image that is in both validation and test is listed as `test`.
    """
    rows = {
        sample.image_id: (marked_cell(sample.image_id), marked_cell(sample.group), name)
        for name in SPLITS
        for sample in getattr(splits, name).samples
    }.values()
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_HEADER, *sorted(rows)])
    write_text(path, text.getvalue())


def read_splits(path: Path) -> dict[str, Split]:
    """The split of each image id in a file of `write_splits`; UsageError for unknown splits."""
    # The name of a folder or file may begin or end with a space.
    columns = read_columns(path, (Column("image-id"), Column("split")), keep_spaces=True)
    return dict(zip(map(unmarked_cell, columns["image-id"]), _checked(path, columns), strict=True))


def _checked(path: Path, columns: Mapping[str, Sequence[str]]) -> list[Split]:
    """The column `split` of the file `path`; UsageError for unknown splits."""
    unknown = sorted(set(columns["split"]) - set(SPLITS))
    if unknown:
        raise UsageError(
            f"`{path}` contains unknown splits.",
            f"Expected `train`, `val` or `test`, got {quoted(unknown)}.",
            f"Use a new run folder, or restore `{path.name}` of the run.",
        )
    return [cast("Split", name) for name in columns["split"]]


EARLIER_SPLITS = "earlier_splits.csv"
"""File in the folder of a training with the splits of the trainings of its initial weights."""
_TRAININGS = 1_000  # more are not credible, and would fill the memory


def write_earlier_splits(path: Path, trainings: Sequence[Mapping[str, str]]) -> None:
    """Writes a CSV with `training,image_id,split` of the images of each training, durably.

    `trainings` maps image ids to splits, and is empty for a training with unknown splits. The
    column `training` counts from 1.
    """
    rows = [
        (number, marked_cell(image_id), split)
        for number, splits in enumerate(trainings, start=1)
        for image_id, split in sorted(splits.items())
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("training", "image_id", "split"), *rows])
    write_text(path, text.getvalue())


def read_earlier_splits(path: Path) -> list[dict[str, Split]]:
    """The splits in a file of `write_earlier_splits`; UsageError if it is damaged.

    Trainings with unknown splits after the last known ones are missing.
    """
    names = (Column("training"), Column("image-id"), Column("split"))
    columns = read_columns(path, names, keep_spaces=True)
    allowed = {str(number) for number in range(1, _TRAININGS + 1)}
    damaged = [number for number in columns["training"] if number not in allowed]
    if damaged:
        raise UsageError(
            f"`{path}` is damaged.",
            f"The column `training` contains {quoted(damaged[:1])}, which is not a number from "
            f"1 to {_TRAININGS}.",
            f"Use a new run folder, or restore `{path.name}` of the run.",
        )
    trainings: dict[int, dict[str, Split]] = defaultdict(dict)
    for number, image_id, split in zip(
        map(int, columns["training"]), map(unmarked_cell, columns["image-id"]),
        _checked(path, columns), strict=True,
    ):  # fmt: skip
        trainings[number][image_id] = split
    return [trainings.get(number, {}) for number in range(1, max(trainings, default=0) + 1)]
