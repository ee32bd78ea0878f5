"""Subsets: the same everywhere, even over classes and groups, nested."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from robustcli.core.errors import UsageError
from robustcli.data.dataset import Dataset, Sample
from robustcli.data.labels import LabelSpace
from robustcli.data.splits import (
    QUICK_GROUPS,
    QUICK_IMAGES,
    QUICK_PER_GROUP,
    QUICK_SPREAD,
    quick_look,
    take,
)
from tests.data.sets import ids, seed_by_hand, with_classes, with_masks

PINNED = ["airplane/014.jpg", "airplane/020.jpg", "airplane/048.jpg", "airplane/083.jpg"]
Make = Callable[..., Dataset]
both = pytest.mark.parametrize("make", [with_classes, with_masks])


def _stratum(sample: Sample) -> str:
    return sample.image_id.partition("/")[0]


def test_pinned_so_that_every_machine_and_version_agrees() -> None:
    assert ids(take(with_classes(100), per_class=4, limit=None, seed=0)) == PINNED


def test_per_class_takes_the_lowest_keys_of_each_class() -> None:
    by_hand = []
    for name in ("airplane", "automobile"):
        names = [f"{name}/{number:03}.jpg" for number in range(20)]
        by_hand += sorted(names, key=lambda name: seed_by_hand("7", name))[:3]
    assert ids(take(with_classes(20, 20), per_class=3, limit=None, seed=7)) == sorted(by_hand)


@both
def test_a_limit_takes_the_lowest_keys_of_each_class_or_group(make: Make) -> None:
    dataset = make(20, 20)
    by_hand = []
    for stratum in dict.fromkeys(map(_stratum, dataset.samples)):
        names = [name for name in ids(dataset) if name.startswith(f"{stratum}/")]
        by_hand += sorted(names, key=lambda name: seed_by_hand("7", name))[:2]
    assert ids(take(dataset, limit=4, seed=7)) == sorted(by_hand)


@both
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=10), st.integers(1, 60), st.integers(0, 2**31)
)
def test_a_limit_spreads_as_evenly_as_the_data_allow(
    make: Make, counts: list[int], limit: int, seed: int
) -> None:
    dataset = make(*counts)
    taken = take(dataset, limit=limit, seed=seed)
    assert len(taken.samples) == min(limit, sum(counts))
    total, got = (Counter(map(_stratum, of.samples)) for of in (dataset, taken))
    assert all(got[stratum] >= min(total[stratum], max(got.values()) - 1) for stratum in total)


@both
@given(st.integers(0, 2**31), st.randoms())
def test_order_of_the_data_does_not_matter(make: Make, seed: int, shuffle: random.Random) -> None:
    dataset = make(5, 9, 3)
    shuffled = list(dataset.samples)
    shuffle.shuffle(shuffled)
    again = replace(dataset, samples=tuple(shuffled))
    for per_class in (None, 2) if make is with_classes else (None,):
        a = take(dataset, per_class=per_class, limit=5, seed=seed)
        b = take(again, per_class=per_class, limit=5, seed=seed)
        assert a.samples == b.samples
        assert ids(a) == sorted(ids(a))


@pytest.mark.parametrize(
    "dataset",
    [with_classes(30, 30), with_masks(30, 30), with_masks(30, 30, splits=("train", "test"))],
)
def test_smaller_subsets_lie_in_larger_ones(dataset: Dataset) -> None:
    few, many = (set(ids(take(dataset, limit=limit, seed=1))) for limit in (7, 20))
    assert few < many


def test_fewer_per_class_lie_in_more() -> None:
    few, many = (
        set(ids(take(with_classes(30, 30), per_class=number, limit=None, seed=1)))
        for number in (10, 15)
    )
    assert few < many


@pytest.mark.parametrize("seed", range(5))
def test_no_given_split_of_images_with_masks_is_lost(seed: int) -> None:
    dataset = with_masks(*[2] * 20, 2, 2, splits=(*["train"] * 20, "val", "test"))
    taken = take(dataset, limit=3, seed=seed)
    assert sorted(str(sample.split) for sample in taken.samples) == ["test", "train", "val"]


@both
def test_the_seed_matters(make: Make) -> None:
    assert len({tuple(ids(take(make(50), limit=5, seed=seed))) for seed in range(5)}) == 5


@pytest.mark.parametrize(
    ("dataset", "per_class", "limit", "words"),
    [
        (with_classes(20, 20), 15, None, "15 per class, seed 3"),
        (with_classes(20, 20), None, 4, "4 images distributed over the classes, seed 3"),
        (
            with_classes(20, 20),
            15,
            4,
            "15 per class, 4 images distributed over the classes, seed 3",
        ),
        (with_masks(20, 20), None, 4, "4 images distributed over the patients, seed 3"),
    ],
)
@pytest.mark.parametrize("part", [None, "test split of `run`"])
def test_the_subset_is_said_in_words_and_the_whole_is_counted(
    dataset: Dataset, per_class: int | None, limit: int | None, words: str, part: str | None
) -> None:
    taken = take(replace(dataset, subset=part), per_class=per_class, limit=limit, seed=3)
    assert taken.subset == (f"{part}: {words}" if part else words)
    assert taken.available == 40


@both
@pytest.mark.parametrize("limit", [None, 40, 1000])
@pytest.mark.parametrize("part", [None, "test split of `run`"])
def test_all_images_are_no_subset(make: Make, limit: int | None, part: str | None) -> None:
    dataset = replace(make(20, 20), subset=part)
    assert take(dataset, limit=limit, seed=0) == dataset


def test_more_per_class_than_there_is() -> None:
    message = (
        r"`--per-class 4` is more.*\nThe smallest class, `bird` \(bird\), has 3\.\nUse `--per-"
    )
    with pytest.raises(UsageError, match=message):
        take(with_classes(5, 9, 3), per_class=4, limit=None, seed=0)


@both
@pytest.mark.parametrize("number", [0, -1])
def test_numbers_below_one(make: Make, number: int) -> None:
    with pytest.raises(UsageError, match=f"`--limit {number}` selects no images"):
        take(make(5), limit=number, seed=0)
    with pytest.raises(UsageError, match=f"`--per-class {number}` selects no images"):
        take(make(5), per_class=number, limit=None, seed=0)


def test_a_quick_look_has_the_fewest_images_that_allow_5_points() -> None:
    """Of a share of one half, where its interval is widest; SciPy is the oracle."""

    def half_width(images: int) -> float:
        interval = binomtest(images // 2, images).proportion_ci(method="wilson")
        return float(interval.high - interval.low) / 2

    assert half_width(QUICK_IMAGES + 1) < 0.05  # an even number: exactly one half
    assert half_width(QUICK_IMAGES - 1) > 0.05
    z = norm.ppf(0.975)
    of_groups = [z * QUICK_SPREAD / groups**0.5 for groups in (QUICK_GROUPS, QUICK_GROUPS - 1)]
    assert of_groups[0] <= 0.05 < of_groups[1]


def test_a_quick_look_spreads_over_classes_and_is_marked() -> None:
    dataset = with_classes(*[100] * 10)
    quick = quick_look(dataset, seed=3)
    assert ids(quick) == ids(take(dataset, limit=QUICK_IMAGES, seed=3))
    counts = Counter(sample.target for sample in quick.samples)
    assert set(counts.values()) == {38, 39}
    assert quick.subset == "quick look: 381 images distributed over the classes, seed 3"


def test_a_quick_look_has_an_image_of_each_of_many_classes() -> None:
    space = LabelSpace("many", *[tuple(f"c{n:03}" for n in range(500))] * 2)
    quick = quick_look(with_classes(*[3] * 500, space=space), seed=0)
    assert sorted(sample.target for sample in quick.samples) == list(range(500))


def test_a_quick_look_at_masks_takes_few_images_of_many_groups() -> None:
    quick = quick_look(with_masks(*[9] * 80), seed=0)
    counts = Counter(sample.group for sample in quick.samples)
    assert (len(counts), set(counts.values())) == (QUICK_GROUPS, {QUICK_PER_GROUP})
    assert quick.subset == "quick look: 248 images of 62 patients, seed 0"
    few = quick_look(with_masks(9, 2, 9), seed=0)
    assert sorted(Counter(sample.group for sample in few.samples).values()) == [2, 4, 4]


@pytest.mark.parametrize("dataset", [with_classes(20, 20), with_masks(4, 3)])
def test_a_quick_look_at_a_small_data_set_is_all_of_it(dataset: Dataset) -> None:
    assert quick_look(dataset, seed=0) == dataset
