"""Parts of pairs: the same everywhere, even over groups, nested."""

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
from robustcli.data.index import ImageRef
from robustcli.data.pair_subset import take_pairs
from robustcli.data.pairs import PairIndex, PairRef


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
