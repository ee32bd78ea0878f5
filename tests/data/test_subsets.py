"""Subsets: the same everywhere, even over classes and groups, nested."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustcli.core.errors import UsageError
from robustcli.data.dataset import Dataset, Sample
from robustcli.data.subsets import take
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
    st.lists(st.integers(1, 12), min_size=1, max_size=10),
    st.integers(1, 60),
    st.integers(0, 2**31),
)
def test_a_limit_spreads_as_evenly_as_the_data_allow(
    make: Make, counts: list[int], limit: int, seed: int
) -> None:
    dataset = make(*counts)
    taken = take(dataset, limit=limit, seed=seed)
    assert len(taken.samples) == min(limit, sum(counts))
    there, got = (Counter(map(_stratum, of.samples)) for of in (dataset, taken))
    assert all(got[stratum] >= min(there[stratum], max(got.values()) - 1) for stratum in there)


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


@both
def test_smaller_subsets_lie_in_larger_ones(make: Make) -> None:
    dataset = make(30, 30)
    few, many = (set(ids(take(dataset, limit=limit, seed=1))) for limit in (7, 20))
    assert few < many


def test_smaller_subsets_lie_in_larger_ones_where_splits_are_given() -> None:
    dataset = with_masks(30, 30, splits=("train", "test"))
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
        (with_classes(20, 20), None, 4, "4 images spread over the classes, seed 3"),
        (with_classes(20, 20), 15, 4, "15 per class, 4 images spread over the classes, seed 3"),
        (with_masks(20, 20), None, 4, "4 images spread over the patients, seed 3"),
    ],
)
@pytest.mark.parametrize("part", [None, "test part of `run`"])
def test_the_subset_is_said_in_words_and_the_whole_is_counted(
    dataset: Dataset, per_class: int | None, limit: int | None, words: str, part: str | None
) -> None:
    taken = take(replace(dataset, subset=part), per_class=per_class, limit=limit, seed=3)
    assert taken.subset == (f"{part}: {words}" if part else words)
    assert taken.available == 40


@both
@pytest.mark.parametrize("limit", [None, 40, 1000])
@pytest.mark.parametrize("part", [None, "test part of `run`"])
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
    with pytest.raises(UsageError, match=f"`--limit {number}` takes no images"):
        take(make(5), limit=number, seed=0)
    with pytest.raises(UsageError, match=f"`--per-class {number}` takes no images"):
        take(make(5), per_class=number, limit=None, seed=0)
