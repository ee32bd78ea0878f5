"""Subsets of data sets: pure functions of image ids and seed, so equal on all machines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from robustcli.core.errors import UsageError
from robustcli.core.seeds import identity_seed
from robustcli.data.dataset import Dataset, Sample


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
        spread = "classes" if has_classes else f"{dataset.grouping}s"
        limits.append(f"{limit} images distributed over the {spread}")
    return _with_subset(dataset, samples, f"{', '.join(limits)}, seed {seed}")


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
        spread = "" if dataset.grouping == "image" else f" of {len(groups)} {dataset.grouping}s"
        contents = f"{len(samples)} images{spread}"
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
