"""Subsets: the same everywhere, even over classes, nested."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustcli.core.errors import UsageError
from robustcli.data.dataset import ImageIndex, ImageRef, PairIndex, PairRef
from robustcli.data.labels import label_space
from robustcli.data.subsets import take, take_pairs


def _index(*counts: int, splits: tuple[str | None, ...] = ()) -> PairIndex:
    pairs = [
        PairRef(
            ImageRef(f"p{group}/{number:03}", 0, Path("i")),
            ImageRef("m", 0, Path("m")),
            f"p{group}",
            splits[group] if splits else None,
        )
        for group, count in enumerate(counts)
        for number in range(count)
    ]
    return PairIndex("set", "place", tuple(pairs), "patient", len(pairs))


def _ids(index: PairIndex) -> list[str]:
    return [pair.image_id for pair in index.pairs]


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=10),
    st.integers(1, 60),
    st.integers(0, 2**31),
)
def test_pairs_are_spread_over_groups_as_evenly_as_they_allow(
    counts: list[int], limit: int, seed: int
) -> None:
    taken = take_pairs(_index(*counts), limit=limit, seed=seed)
    assert len(taken.pairs) == min(limit, sum(counts))
    got = Counter(pair.group for pair in taken.pairs)
    most = max(got.values())
    assert all(got[f"p{group}"] >= min(count, most - 1) for group, count in enumerate(counts))


@given(st.integers(0, 2**31), st.randoms())
def test_order_of_the_index_does_not_matter(seed: int, shuffle: random.Random) -> None:
    index = _index(5, 9, 3)
    shuffled = list(index.pairs)
    shuffle.shuffle(shuffled)
    a = take_pairs(index, limit=7, seed=seed)
    b = take_pairs(replace(index, pairs=tuple(shuffled)), limit=7, seed=seed)
    assert a.pairs == b.pairs
    assert _ids(a) == sorted(_ids(a))


def _seed_by_hand(*parts: str) -> int:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part.encode())
    return int.from_bytes(digest.digest()[:8], "little")


def test_the_lowest_keys_of_each_group_are_taken() -> None:
    by_hand = []
    for group in ("p0", "p1"):
        names = [f"{group}/{number:03}" for number in range(20)]
        by_hand += sorted(names, key=lambda name: _seed_by_hand("7", name))[:2]
    assert _ids(take_pairs(_index(20, 20), limit=4, seed=7)) == sorted(by_hand)


def test_smaller_parts_lie_in_larger_ones() -> None:
    index = _index(30, 30, splits=("train", "test"))
    assert set(_ids(take_pairs(index, limit=7, seed=1))) < set(
        _ids(take_pairs(index, limit=20, seed=1))
    )


@pytest.mark.parametrize("seed", range(5))
def test_no_given_split_is_lost(seed: int) -> None:
    index = _index(*[2] * 20, 2, 2, splits=(*["train"] * 20, "val", "test"))
    taken = take_pairs(index, limit=3, seed=seed)
    assert sorted(str(pair.split) for pair in taken.pairs) == ["test", "train", "val"]


def test_the_part_is_said_in_words_and_the_whole_is_counted() -> None:
    taken = take_pairs(_index(20, 20), limit=4, seed=3)
    assert taken.subset == "4 images spread over the patients, seed 3"
    assert taken.available == 40


@pytest.mark.parametrize("limit", [None, 40, 1000])
def test_all_pairs_are_no_part(limit: int | None) -> None:
    index = _index(20, 20)
    assert take_pairs(index, limit=limit, seed=0) == index


@pytest.mark.parametrize("limit", [0, -1])
def test_numbers_below_one(limit: int) -> None:
    with pytest.raises(UsageError, match=f"`--limit {limit}` takes no images"):
        take_pairs(_index(5), limit=limit, seed=0)


SPACE = label_space("cifar10")
PINNED = ["airplane/014.jpg", "airplane/020.jpg", "airplane/048.jpg", "airplane/083.jpg"]


def _index_subset(*counts: int) -> ImageIndex:
    refs = [
        ImageRef(f"{SPACE.ids[target]}/{number:03}.jpg", target, Path("p"))
        for target, count in enumerate(counts)
        for number in range(count)
    ]
    return ImageIndex("set", "place", SPACE, tuple(refs), available=len(refs))


def _ids_subset(index: ImageIndex) -> list[str]:
    return [image.image_id for image in index.images]


def _seed_by_hand_subset(*parts: str) -> int:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part.encode())
    return int.from_bytes(digest.digest()[:8], "little")


def test_per_class_takes_the_lowest_keys_of_each_class() -> None:
    index = _index_subset(20, 20)
    by_hand = []
    for target in (0, 1):
        names = [f"{SPACE.ids[target]}/{number:03}.jpg" for number in range(20)]
        by_hand += sorted(names, key=lambda name: _seed_by_hand_subset("7", name))[:3]
    assert _ids_subset(take(index, per_class=3, limit=None, seed=7)) == sorted(by_hand)


def test_pinned_so_that_every_machine_and_version_agrees() -> None:
    taken = take(_index_subset(100), per_class=4, limit=None, seed=0)
    assert _ids_subset(taken) == PINNED


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=10),
    st.integers(1, 60),
    st.integers(0, 2**31),
)
def test_limit_is_spread_over_classes_as_evenly_as_they_allow(
    counts: list[int], limit: int, seed: int
) -> None:
    taken = take(_index_subset(*counts), per_class=None, limit=limit, seed=seed)
    assert len(taken.images) == min(limit, sum(counts))
    got = Counter(image.target for image in taken.images)
    most = max(got.values())
    assert all(got[target] >= min(count, most - 1) for target, count in enumerate(counts))


@given(st.integers(0, 2**31), st.randoms())
def test_order_of_the_index_does_not_matter_subset(seed: int, shuffle: random.Random) -> None:
    index = _index_subset(5, 9, 3)
    shuffled = list(index.images)
    shuffle.shuffle(shuffled)
    a = take(index, per_class=2, limit=5, seed=seed)
    b = take(replace(index, images=tuple(shuffled)), per_class=2, limit=5, seed=seed)
    assert a.images == b.images
    assert _ids_subset(a) == sorted(_ids_subset(a))


def test_smaller_subsets_lie_in_larger_ones() -> None:
    index = _index_subset(30, 30)
    small = _ids_subset(take(index, per_class=10, limit=None, seed=1))
    assert set(small) < set(_ids_subset(take(index, per_class=15, limit=None, seed=1)))
    few = _ids_subset(take(index, per_class=None, limit=7, seed=1))
    assert set(few) < set(_ids_subset(take(index, per_class=None, limit=20, seed=1)))


def test_the_seed_matters() -> None:
    index = _index_subset(50)
    taken = {tuple(_ids_subset(take(index, per_class=5, limit=None, seed=s))) for s in range(5)}
    assert len(taken) == 5


def test_the_subset_is_said_in_words_and_the_whole_is_counted() -> None:
    index = _index_subset(20, 20)
    assert take(index, per_class=15, limit=None, seed=0).subset == "15 per class, seed 0"
    both = take(index, per_class=15, limit=4, seed=3)
    assert both.subset == "15 per class, 4 images spread over the classes, seed 3"
    assert both.available == 40


@pytest.mark.parametrize(
    ("per_class", "limit", "words"),
    [
        (15, None, "test part of `run`: 15 per class, seed 0"),
        (None, 4, "test part of `run`: 4 images spread over the classes, seed 0"),
        (None, 1000, "test part of `run`"),
        (None, None, "test part of `run`"),
    ],
)
def test_a_part_of_a_part_names_both(per_class: int | None, limit: int | None, words: str) -> None:
    part = replace(_index_subset(20, 20), subset="test part of `run`")
    assert take(part, per_class=per_class, limit=limit, seed=0).subset == words


@pytest.mark.parametrize("limit", [None, 40, 1000])
def test_all_images_are_no_subset(limit: int | None) -> None:
    index = _index_subset(20, 20)
    assert take(index, per_class=None, limit=limit, seed=0) == index


def test_more_per_class_than_there_is() -> None:
    message = (
        r"`--per-class 4` is more.*\nThe smallest class, `bird` \(bird\), has 3\.\nUse `--per-"
    )
    with pytest.raises(UsageError, match=message):
        take(_index_subset(5, 9, 3), per_class=4, limit=None, seed=0)


@pytest.mark.parametrize("number", [0, -1])
def test_numbers_below_one_subset(number: int) -> None:
    with pytest.raises(UsageError, match=f"`--per-class {number}` takes no images"):
        take(_index_subset(5), per_class=number, limit=None, seed=0)
    with pytest.raises(UsageError, match=f"`--limit {number}` takes no images"):
        take(_index_subset(5), per_class=None, limit=number, seed=0)
