"""The three parts of real and made-up data, and their file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sklearn.model_selection import train_test_split

from robustcli.core.errors import UsageError
from robustcli.data.index import ImageRef
from robustcli.data.open_pairs import open_pairs
from robustcli.data.pairs import PairIndex, PairRef
from robustcli.data.splits import SPLITS, paper_splits, patient_splits, read_splits, write_splits


def _index(images: int, split: str | None = None) -> PairIndex:
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
    index = _index(images)
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
    index = _index(30)
    assert patient_splits(index, seed=4).val.subset == "val part, split by patient, seed 4"
    assert paper_splits(index).test.subset == "test part, split by image, seed 37"
    assert patient_splits(index, seed=4).test.available == 30


def test_a_part_that_the_data_does_not_give_is_said_to_be_drawn() -> None:
    held_out = [replace(pair, split="test") for pair in _index(3).pairs]
    rest = [pair for pair in _index(30, "train").pairs if pair.group != "p0"]
    index = PairIndex("set", "place", (*held_out, *rest), "patient")
    splits = patient_splits(index, seed=1)
    words = "split as the data gives it, val by patient, seed 1"
    assert splits.train.subset == f"train part, {words}"
    assert _ids(splits.test) == {"000", "001", "002"}


def test_too_few_images_for_the_paper() -> None:
    with pytest.raises(UsageError, match=r"`set` has too few images to split: 5\."):
        paper_splits(_index(5))


def test_the_file_says_what_was_drawn(tmp_path: Path) -> None:
    splits = patient_splits(_index(30), seed=0)
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
