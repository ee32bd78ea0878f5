"""Held-out groups: even, stable, and scikit-learn's own shuffling."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from robustcli.core.errors import UsageError
from robustcli.data.index import ImageRef
from robustcli.data.pair_drawing import parts_by_group, shuffled_in_two
from robustcli.data.pairs import PairIndex, PairRef


def _index(groups: int, given: Mapping[int, str] | None = None) -> PairIndex:
    pairs = [
        PairRef(ImageRef(f"{g:03}", 0, Path("i")), ImageRef("m", 0, Path("m")), f"p{g:03}", split)
        for g in range(groups)
        for split in [given.get(g, "train") if given else None]
    ]
    return PairIndex("set", "place", tuple(pairs), "patient", len(pairs))


@given(st.integers(3, 60), st.integers(0, 2**31))
def test_every_group_is_in_one_part(groups: int, seed: int) -> None:
    index = _index(groups)
    parts = parts_by_group(index, seed=seed)
    assert sorted(group for part in parts.values() for group in part) == list(index.groups)
    assert len(parts["val"]) == len(parts["test"]) == max(1, round(groups / 10))


def test_sizes_of_110_patients() -> None:
    parts = parts_by_group(_index(110), seed=0)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 88,
        "val": 11,
        "test": 11,
    }


def _seed_by_hand(*parts: str) -> int:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part.encode())
    return int.from_bytes(digest.digest()[:8], "little")


def test_the_ends_of_the_order_are_held_out() -> None:
    index = _index(30)
    order = sorted(index.groups, key=lambda group: _seed_by_hand("7", group))
    parts = parts_by_group(index, seed=7)
    assert (parts["test"], parts["val"]) == (set(order[:3]), set(order[-3:]))


@pytest.mark.parametrize("seed", range(5))
def test_groups_that_join_move_few_others(seed: int) -> None:
    before, after = (parts_by_group(_index(n), seed=seed) for n in (100, 110))
    moved = sum(group not in after[name] for name, part in before.items() for group in part)
    assert moved <= 3
    assert not before["test"] & after["val"]
    assert not before["val"] & after["test"]


def test_the_seed_matters() -> None:
    drawn = {frozenset(parts_by_group(_index(30), seed=seed)["test"]) for seed in range(5)}
    assert len(drawn) == 5


def test_given_splits_are_kept() -> None:
    parts = parts_by_group(_index(6, {0: "test", 1: "val", 2: "val"}), seed=0)
    assert (parts["test"], parts["val"]) == ({"p000"}, {"p001", "p002"})
    assert parts["train"] == {"p003", "p004", "p005"}


@pytest.mark.parametrize("missing", ["val", "test"])
def test_a_part_that_is_not_given_comes_from_training(missing: str) -> None:
    there = {"val": "test", "test": "val"}[missing]
    parts = parts_by_group(_index(20, {0: there, 1: there}), seed=0)
    assert parts[there] == {"p000", "p001"}
    assert len(parts[missing]) == 2
    assert len(parts["train"]) == 16


def test_too_few_groups() -> None:
    message = (
        r"`set` cannot be split by patient\.\ntrain, test, val need one patient each at least, but "
        r"there are 2 to draw from\.\nName more data, .*`--protocol paper` splits by image"
    )
    with pytest.raises(UsageError, match=message):
        parts_by_group(_index(2), seed=0)


def test_one_group_only_is_named() -> None:
    with pytest.raises(UsageError, match=r"but all images belong to the patient `p000`\."):
        parts_by_group(_index(1), seed=0)


def test_given_parts_without_training() -> None:
    with pytest.raises(UsageError, match=r"train need one patient each at least, but there are 0"):
        parts_by_group(_index(2, {0: "val", 1: "test"}), seed=0)


@given(st.integers(2, 200), st.integers(0, 2**32 - 1), st.data())
def test_shuffling_is_that_of_scikit_learn(count: int, seed: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, count - 1))
    ids = [str(number) for number in range(count)]
    theirs = train_test_split(ids, train_size=first, random_state=seed)
    assert list(shuffled_in_two(ids, first, seed)) == theirs
