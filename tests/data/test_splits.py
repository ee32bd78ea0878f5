"""The three parts of real and made-up data, and their file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from robustcli.core.errors import UsageError
from robustcli.data.dataset import ImageIndex, ImageRef, PairIndex, PairRef
from robustcli.data.labels import LabelSpace
from robustcli.data.sources import open_pairs
from robustcli.data.splits import (
    SPLITS,
    class_splits,
    paper_splits,
    parts_by_group,
    patient_splits,
    read_splits,
    shuffled_in_two,
    write_splits,
)

SPACE = LabelSpace("pets", ("cat", "dog"), ("cat", "dog"))


def index(cats: int, dogs: int, splits: dict[str, str] | None = None) -> ImageIndex:
    ids = [f"cat/{n}.png" for n in range(cats)] + [f"dog/{n}.png" for n in range(dogs)]
    images = [
        ImageRef(i, int(i.startswith("dog")), Path(i), split=(splits or {}).get(i)) for i in ids
    ]
    return ImageIndex("pets", "/pets", SPACE, tuple(sorted(images, key=lambda i: i.image_id)))


def ids(part: ImageIndex) -> set[str]:
    return {image.image_id for image in part.images}


def test_a_tenth_of_each_class_is_held_out_twice() -> None:
    splits = class_splits(index(50, 21), seed=0)
    counts = [Counter(image.target for image in part.images) for part in (
        splits.train, splits.val, splits.test
    )]  # fmt: skip
    assert counts == [{0: 40, 1: 17}, {0: 5, 1: 2}, {0: 5, 1: 2}]
    assert not ids(splits.train) & ids(splits.val)
    assert not ids(splits.train) & ids(splits.test)
    assert not ids(splits.val) & ids(splits.test)
    assert splits.test.subset == "test part, split by image in each class, seed 0"


def test_the_seed_decides_and_more_images_move_few() -> None:
    one, again, other = (class_splits(index(50, 50), seed=seed) for seed in (0, 0, 1))
    assert ids(one.test) == ids(again.test) != ids(other.test)
    joined = class_splits(index(52, 50), seed=0)
    assert len(ids(one.test) - ids(joined.test)) <= 2


def test_parts_of_the_data_are_kept_and_a_missing_one_is_drawn_from_training() -> None:
    given = {f"cat/{n}.png": "val" for n in range(3)} | {f"dog/{n}.png": "val" for n in range(2)}
    splits = class_splits(index(20, 20, given), seed=0)
    assert ids(splits.val) == set(given)
    assert Counter(image.target for image in splits.test.images) == {0: 2, 1: 2}
    assert splits.val.subset == "val part, split as the data gives it, test by image in each " \
        "class, seed 0"  # fmt: skip


def test_three_images_of_a_class_are_just_enough() -> None:
    splits = class_splits(index(3, 10), seed=0)
    for part in (splits.train, splits.val, splits.test):
        assert {image.target for image in part.images} == {0, 1}


@pytest.mark.parametrize("cats", [0, 1, 2])
def test_fewer_are_not(cats: int) -> None:
    with pytest.raises(UsageError, match="class `cat` of `pets` has too few images") as told:
        class_splits(index(cats, 10), seed=0)
    assert "3 in all" in str(told.value)


def test_a_class_that_is_only_in_the_test_part_is_refused() -> None:
    given = {f"cat/{n}.png": "test" for n in range(5)} | {"dog/0.png": "test", "dog/1.png": "val"}
    with pytest.raises(UsageError, match="class `cat`"):
        class_splits(index(5, 10, given), seed=0)


def test_the_words_of_a_subset_stay() -> None:
    limited = replace(index(10, 10), subset="20 images")
    assert class_splits(limited, seed=0).val.subset == (
        "20 images; val part, split by image in each class, seed 0"
    )


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


def _index_splits(images: int, split: str | None = None) -> PairIndex:
    pairs = [
        PairRef(ImageRef(f"{i:03}", 0, Path("i")), ImageRef("m", 0, Path("m")), f"p{i // 3}", split)
        for i in range(images)
    ]
    return PairIndex("set", "place", tuple(pairs), "patient", images)


def _ids(index: PairIndex) -> set[str]:
    return {pair.image_id for pair in index.pairs}


def test_patients_of_lgg_are_in_one_part_each(shared: Path) -> None:
    index = open_pairs(str(shared / "lgg_jpeg" / "kaggle_3m"))
    splits = patient_splits(index, seed=0)
    parts = [splits.train, splits.val, splits.test]
    assert [len(part.groups) for part in parts] == [88, 11, 11]
    assert sum(len(part.pairs) for part in parts) == 3929
    assert len(set().union(*(part.groups for part in parts))) == 110
    patients = [{pair.image_id.split("/")[0] for pair in part.pairs} for part in parts]
    assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]


def test_tiles_of_a_photo_are_in_one_part(shared: Path) -> None:
    splits = patient_splits(open_pairs(str(shared / "massachusetts_roads")), seed=0)
    parts = [splits.train, splits.val, splits.test]
    assert [len(part.pairs) for part in parts] == [70, 10, 9]
    assert sum(len(part.groups) for part in parts) == 38
    assert splits.val.subset == "val part, split as the data gives it"
    for part, name in zip(parts, SPLITS, strict=True):
        assert all(pair.image_id.startswith(f"{name}/") for pair in part.pairs)


def test_the_paper_splits_as_its_notebooks_did(shared: Path) -> None:
    index = open_pairs(str(shared / "lgg_jpeg" / "kaggle_3m"))
    ids = sorted(pair.image_id for pair in index.pairs)
    train, rest = train_test_split(ids, train_size=0.8, random_state=37)
    val, test = train_test_split(rest, test_size=0.5, random_state=37)
    splits = paper_splits(index)
    assert [len(train), len(val), len(test)] == [3143, 393, 393]
    assert (_ids(splits.train), _ids(splits.val), _ids(splits.test)) == (
        set(train),
        set(val),
        set(test),
    )


@pytest.mark.parametrize("images", [6, 7, 8, 11, 194])
def test_odd_numbers_are_split_as_by_scikit_learn(images: int) -> None:
    index = _index_splits(images)
    train, rest = train_test_split(
        [p.image_id for p in index.pairs], train_size=0.8, random_state=37
    )
    val, test = train_test_split(rest, test_size=0.5, random_state=37)
    splits = paper_splits(index)
    assert (_ids(splits.train), _ids(splits.val), _ids(splits.test)) == (
        set(train),
        set(val),
        set(test),
    )


def test_parts_say_what_they_are() -> None:
    index = _index_splits(30)
    assert patient_splits(index, seed=4).val.subset == "val part, split by patient, seed 4"
    assert paper_splits(index).test.subset == "test part, split by image, seed 37"
    assert patient_splits(index, seed=4).test.available == 30


def test_a_part_that_the_data_does_not_give_is_said_to_be_drawn() -> None:
    held_out = [replace(pair, split="test") for pair in _index_splits(3).pairs]
    rest = [pair for pair in _index_splits(30, "train").pairs if pair.group != "p0"]
    index = PairIndex("set", "place", (*held_out, *rest), "patient")
    splits = patient_splits(index, seed=1)
    words = "split as the data gives it, val by patient, seed 1"
    assert splits.train.subset == f"train part, {words}"
    assert _ids(splits.test) == {"000", "001", "002"}


def test_too_few_images_for_the_paper() -> None:
    with pytest.raises(UsageError, match=r"`set` has too few images to split: 5\."):
        paper_splits(_index_splits(5))


def test_the_file_says_what_was_drawn(tmp_path: Path) -> None:
    splits = patient_splits(_index_splits(30), seed=0)
    write_splits(tmp_path / "splits.csv", splits)
    lines = (tmp_path / "splits.csv").read_text().splitlines()
    assert lines[0] == "image_id,group,split"
    assert lines[1:] == sorted(lines[1:])
    read = read_splits(tmp_path / "splits.csv")
    assert {name for name, split in read.items() if split == "test"} == _ids(splits.test)
    assert len(read) == 30


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("image_id,split\na,dev\n")
    with pytest.raises(UsageError, match=r"names splits that do not exist\.\n.*got `dev`"):
        read_splits(tmp_path / "s.csv")
    (tmp_path / "s.csv").write_text("image_id,group\na,p\n")
    with pytest.raises(UsageError, match="has no column `split`"):
        read_splits(tmp_path / "s.csv")
