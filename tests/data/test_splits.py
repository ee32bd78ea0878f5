"""Subsets of data sets, and their three parts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.model_selection import train_test_split

from robustcli.core.errors import UsageError
from robustcli.data.dataset import Dataset, Sample
from robustcli.data.labels import LabelSpace
from robustcli.data.sources import Masks, open_dataset
from robustcli.data.splits import (
    QUICK_GROUPS,
    QUICK_IMAGES,
    QUICK_PER_GROUP,
    QUICK_SPREAD,
    SPLITS,
    Splits,
    paper_splits,
    quick_look,
    read_splits,
    shuffled_in_two,
    split_dataset,
    take,
    write_splits,
)
from tests.data.sets import ids, seed_by_hand, with_classes, with_masks

MASKS = Masks(surveyed=False)
PETS = LabelSpace("pets", ("cat", "dog"), ("cat", "dog"))


def parts(splits: Splits) -> dict[str, Dataset]:
    return {name: getattr(splits, name) for name in SPLITS}


def test_a_tenth_of_each_class_is_held_out_twice() -> None:
    splits = parts(split_dataset(with_classes(50, 21, space=PETS), seed=0))
    counts = {n: Counter(s.target for s in part.samples) for n, part in splits.items()}
    assert counts == {"train": {0: 40, 1: 17}, "val": {0: 5, 1: 2}, "test": {0: 5, 1: 2}}
    assert len({image_id for part in splits.values() for image_id in ids(part)}) == 71


def test_the_seed_decides_and_more_images_of_a_class_move_few() -> None:
    first, again, other = (
        split_dataset(with_classes(50, 50, space=PETS), seed=seed) for seed in (0, 0, 1)
    )
    assert ids(first.test) == ids(again.test) != ids(other.test)
    joined = split_dataset(with_classes(52, 50, space=PETS), seed=0)
    assert len(set(ids(first.test)) - set(ids(joined.test))) <= 2


def test_parts_of_classes_are_kept_and_a_missing_one_is_drawn_from_training() -> None:
    known = {f"cat/{n:03}.jpg": "val" for n in range(3)}
    known |= {f"dog/{n:03}.jpg": "val" for n in range(2)}
    splits = split_dataset(with_classes(20, 20, space=PETS, splits=known), seed=0)
    assert set(ids(splits.val)) == set(known)
    assert Counter(sample.target for sample in splits.test.samples) == {0: 2, 1: 2}


def test_three_images_of_a_class_are_just_enough() -> None:
    splits = split_dataset(with_classes(3, 10, space=PETS), seed=0)
    for part in parts(splits).values():
        assert {sample.target for sample in part.samples} == {0, 1}


@pytest.mark.parametrize("cats", [0, 1, 2])
def test_fewer_are_not(cats: int) -> None:
    with pytest.raises(UsageError, match="class `cat` of `set` has too few images") as error:
        split_dataset(with_classes(cats, 10, space=PETS), seed=0)
    assert "3 in all" in str(error.value)


def test_a_class_that_is_only_in_the_test_part_is_refused() -> None:
    known = {f"cat/{n:03}.jpg": "test" for n in range(5)}
    known |= {"dog/000.jpg": "test", "dog/001.jpg": "val"}
    message = r"`set` have different classes\.\n`cat` is in `test`, but not in `train`"
    with pytest.raises(UsageError, match=message):
        split_dataset(with_classes(5, 10, space=PETS, splits=known), seed=0)


def _groups(groups: int, by_group: Mapping[int, str] | None = None) -> Dataset:
    splits = [by_group.get(group, "train") for group in range(groups)] if by_group else ()
    return with_masks(*[1] * groups, splits=splits)


def groups_of(dataset: Dataset, seed: int) -> dict[str, set[str]]:
    return {n: set(part.groups) for n, part in parts(split_dataset(dataset, seed=seed)).items()}


@given(st.integers(3, 60), st.integers(0, 2**31))
def test_every_group_is_in_one_part(groups: int, seed: int) -> None:
    dataset = _groups(groups)
    result = groups_of(dataset, seed)
    assert sorted(group for part in result.values() for group in part) == list(dataset.groups)
    assert len(result["val"]) == len(result["test"]) == max(1, round(groups / 10))


def test_the_ends_of_the_order_are_held_out() -> None:
    dataset = _groups(30)
    order = sorted(dataset.groups, key=lambda group: seed_by_hand("7", group))
    groups = groups_of(dataset, 7)
    assert (groups["test"], groups["val"]) == (set(order[:3]), set(order[-3:]))


@pytest.mark.parametrize("seed", range(5))
def test_groups_that_join_move_few_others(seed: int) -> None:
    before, after = (groups_of(_groups(n), seed) for n in (100, 110))
    moved = sum(group not in after[name] for name, part in before.items() for group in part)
    assert moved <= 3
    assert not before["test"] & after["val"]
    assert not before["val"] & after["test"]


def test_the_seed_matters() -> None:
    assert len({frozenset(groups_of(_groups(30), seed)["test"]) for seed in range(5)}) == 5


def test_splits_of_the_data_are_kept() -> None:
    groups = groups_of(_groups(6, {0: "test", 1: "val", 2: "val"}), 0)
    assert (groups["test"], groups["val"]) == ({"p000"}, {"p001", "p002"})
    assert groups["train"] == {"p003", "p004", "p005"}


@pytest.mark.parametrize("missing", ["val", "test"])
def test_a_part_that_is_not_given_comes_from_training(missing: str) -> None:
    known_part = {"val": "test", "test": "val"}[missing]
    groups = groups_of(_groups(20, {0: known_part, 1: known_part}), 0)
    assert groups[known_part] == {"p000", "p001"}
    assert len(groups[missing]) == 2
    assert len(groups["train"]) == 16


def test_too_few_groups() -> None:
    message = (
        r"`set` cannot be split by patient\.\ntrain, test, val need at least one patient each, "
        r"but only 2 are available\.\nUse more data, .*`--protocol paper` splits by image"
    )
    with pytest.raises(UsageError, match=message):
        split_dataset(_groups(2), seed=0)

    with pytest.raises(UsageError, match=r"but all images belong to the patient `p000`\."):
        split_dataset(_groups(1), seed=0)
    with pytest.raises(UsageError, match=r"train need at least one patient each, but only 0 are"):
        split_dataset(_groups(2, {0: "val", 1: "test"}), seed=0)


TESTED = {f"cat/{n:03}.jpg": "test" for n in range(3)} | {"dog/000.jpg": "test"}
CATS = with_classes(20, 20, space=PETS, splits=TESTED)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (with_classes(10, 10, space=PETS), "by image in each class, seed 4"),
        (CATS, "as defined by the data set, val by image in each class, seed 4"),
        (_groups(30), "by patient, seed 4"),
        (_groups(30, {0: "test"}), "as defined by the data set, val by patient, seed 4"),
        (_groups(30, {0: "test", 1: "val"}), "as defined by the data set"),
    ],
)
@pytest.mark.parametrize("subset", [None, "20 images"])
def test_parts_say_what_they_are(dataset: Dataset, words: str, subset: str | None) -> None:
    splits = split_dataset(replace(dataset, subset=subset), seed=4)
    before = "20 images; " if subset else ""
    for name, part in parts(splits).items():
        assert part.subset == f"{before}{name} part, split {words}"
        assert part.available == len(dataset.samples)


def test_patients_of_lgg_are_in_one_part_each(shared: Path) -> None:
    dataset = open_dataset(str(shared / "lgg_jpeg" / "kaggle_3m"), MASKS)
    result = list(parts(split_dataset(dataset, seed=0)).values())
    assert [len(part.groups) for part in result] == [88, 11, 11]
    assert sum(len(part.samples) for part in result) == 3929
    assert len(set().union(*(part.groups for part in result))) == 110
    patients = [{image_id.split("/")[0] for image_id in ids(part)} for part in result]
    assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]


def test_tiles_of_a_photo_are_in_one_part(shared: Path) -> None:
    splits = split_dataset(open_dataset(str(shared / "massachusetts_roads"), MASKS), seed=0)
    assert {n: len(part.samples) for n, part in parts(splits).items()} == {
        "train": 70, "val": 10, "test": 9,
    }  # fmt: skip
    assert sum(len(part.groups) for part in parts(splits).values()) == 38
    assert splits.val.subset == "val part, split as defined by the data set"
    for name, part in parts(splits).items():
        assert all(image_id.startswith(f"{name}/") for image_id in ids(part))


@given(st.integers(2, 200), st.integers(0, 2**32 - 1), st.data())
def test_shuffling_is_that_of_scikit_learn(count: int, seed: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, count - 1))
    numbers = [str(number) for number in range(count)]
    theirs = train_test_split(numbers, train_size=first, random_state=seed)
    assert list(shuffled_in_two(numbers, first, seed)) == theirs


def _as_the_notebooks(dataset: Dataset) -> dict[str, set[str]]:
    train, rest = train_test_split(sorted(ids(dataset)), train_size=0.8, random_state=37)
    val, test = train_test_split(rest, test_size=0.5, random_state=37)
    return {"train": set(train), "val": set(val), "test": set(test)}


def test_the_paper_splits_as_its_notebooks_did(shared: Path) -> None:
    dataset = open_dataset(str(shared / "lgg_jpeg" / "kaggle_3m"), MASKS)
    result = {name: set(ids(part)) for name, part in parts(paper_splits(dataset)).items()}
    assert {n: len(part) for n, part in result.items()} == {"train": 3143, "val": 393, "test": 393}
    assert result == _as_the_notebooks(dataset)


@pytest.mark.parametrize("images", [6, 7, 8, 11, 194])
def test_odd_numbers_are_split_as_by_scikit_learn(images: int) -> None:
    dataset = with_masks(*[3] * (images // 3), images % 3)
    splits = paper_splits(dataset)
    assert {n: set(ids(part)) for n, part in parts(splits).items()} == _as_the_notebooks(dataset)
    assert splits.test.subset == "test part, split by image, seed 37"
    _, rest = train_test_split(sorted(ids(dataset)), train_size=0.8, random_state=37)
    drawn = train_test_split(rest, test_size=0.5, random_state=37)  # the paper pools neighbours
    assert [ids(splits.val), ids(splits.test)] == drawn


def test_too_few_images_for_the_paper() -> None:
    with pytest.raises(UsageError, match=r"`set` has too few images to split: 5\."):
        paper_splits(with_masks(3, 2))


@pytest.mark.parametrize("dataset", [with_masks(*[3] * 10), with_classes(15, 15, space=PETS)])
def test_the_file_says_what_was_drawn(dataset: Dataset, tmp_path: Path) -> None:
    splits = split_dataset(dataset, seed=0)
    write_splits(tmp_path / "splits.csv", splits)
    lines = (tmp_path / "splits.csv").read_text().splitlines()
    assert lines[0] == "image_id,group,split"
    assert lines[1:] == sorted(lines[1:])
    read = read_splits(tmp_path / "splits.csv")
    assert {name for name, split in read.items() if split == "test"} == set(ids(splits.test))
    assert len(read) == 30


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("image_id,split\na,dev\n")
    with pytest.raises(UsageError, match=r"contains unknown splits\.\n.*got `dev`"):
        read_splits(tmp_path / "s.csv")
    (tmp_path / "s.csv").write_text("image_id,group\na,p\n")
    with pytest.raises(UsageError, match="has no column `split`"):
        read_splits(tmp_path / "s.csv")


# Subsets: the same everywhere, even over classes and groups, nested.


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
def test_the_seed_of_a_subset_matters(make: Make) -> None:
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
