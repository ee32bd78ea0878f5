"""Parts of images with classes: every class in every part, and nothing by the order of files."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.data.class_splits import class_splits
from robustcli.data.index import ImageIndex, ImageRef
from robustcli.data.labels import LabelSpace

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
