"""What names a data set, and a part of it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from robustcli.data.dataset import Dataset, FileRef, Sample, contents_digest
from robustcli.data.labels import read_label_space
from robustcli.data.sources import Classes, Masks, open_dataset
from robustcli.data.splits import SPLITS, paper_splits, split_dataset, take

CLASSES = Dataset(
    "name", "place",
    (
        Sample(FileRef("a/1.jpg", Path("x")), 0, "a/1.jpg"),
        Sample(FileRef("b/é.jpg", Path("y")), 7, "b/é.jpg"),
    ),
    read_label_space("cifar10"),
)  # fmt: skip


def _masks(*groups: str) -> Dataset:
    samples = [
        Sample(FileRef(f"{number}.png", Path("i")), FileRef("m.png", Path("m")), group)
        for number, group in enumerate(groups)
    ]
    return Dataset("set", "place", tuple(samples), grouping="patient", available=len(samples))


@pytest.mark.parametrize(
    ("dataset", "text"),
    [(CLASSES, "a/1.jpg\0000\nb/é.jpg\0007\n"), (_masks("p", "q"), "0.png\0p\n1.png\0q\n")],
)
def test_digests_are_those_of_ids_and_targets_or_groups(dataset: Dataset, text: str) -> None:
    assert dataset.digest == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("dataset", [CLASSES, _masks("p", "q")])
def test_digests_do_not_depend_on_the_machine(dataset: Dataset) -> None:
    moved = tuple(
        replace(sample, image=replace(sample.image, path=Path("/elsewhere")))
        for sample in dataset.samples
    )
    assert replace(dataset, samples=moved, location="elsewhere").digest == dataset.digest


@pytest.mark.parametrize("dataset", [CLASSES, _masks("p", "q")])
def test_digests_depend_on_order_and_truth(dataset: Dataset) -> None:
    first, *others = dataset.samples
    wrong = replace(first, group="r") if dataset is not CLASSES else replace(first, truth=1)
    changed = ((*others, first), (wrong, *others), (first,))
    digests = {replace(dataset, samples=samples).digest for samples in changed}
    assert len(digests | {dataset.digest}) == 4


def test_groups_are_sorted_and_a_part_keeps_the_order_and_counts_the_whole() -> None:
    assert _masks("q", "p", "q").groups == ("p", "q")
    assert CLASSES.groups == ("a/1.jpg", "b/é.jpg")
    part = _masks("p", "q", "r").part(frozenset({"2.png", "0.png"}), "test part")
    assert [sample.group for sample in part.samples] == ["p", "r"]
    assert (part.subset, part.available) == ("test part", 3)


def test_a_class_is_no_mask_and_a_mask_no_class() -> None:
    with pytest.raises(TypeError, match=r"`a/1\.jpg` has a class, not a mask"):
        _ = CLASSES.samples[0].mask
    with pytest.raises(TypeError, match=r"`0\.png` has a mask, not a class"):
        _ = _masks("p").samples[0].target
    with pytest.raises(TypeError, match="`set` has masks, not classes"):
        _ = _masks("p").classes


def test_a_file_says_its_folder_and_names() -> None:
    file = FileRef("a.b/c.x.png", Path("set.tar"), "a.b/c.x.png")
    assert (file.folder, file.file_name, file.stem) == ("a.b", "c.x.png", "a.b/c.x")
    assert str(file) == "set.tar:a.b/c.x.png"
    assert FileRef("c.png", Path("d") / "c.png").folder is None


def _files(folder: Path, contents: dict[str, bytes]) -> list[FileRef]:
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [FileRef(name, folder / name) for name in contents]


def test_data_sets_with_the_same_names_are_told_apart_by_their_contents(tmp_path: Path) -> None:
    """Two data sets of `0.png`, `1.png` once shared one run, whose rows were of the first."""
    first = _files(tmp_path / "first", {"0.png": b"aa", "1.png": b"bb"})
    copy = _files(tmp_path / "copy", {"1.png": b"bb", "0.png": b"aa"})
    assert contents_digest(first) == contents_digest(copy)
    for number, other in enumerate(({"0.png": b"aa", "1.png": b"bc"},
                                    {"0.png": b"bb", "1.png": b"aa"},
                                    {"0.png": b"aa", "1.png": b"bbb"})):  # fmt: skip
        files = _files(tmp_path / f"other{number}", other)
        assert contents_digest(files) != contents_digest(first)


def test_lengths_count_where_contents_are_no_longer_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustcli.data.dataset.CONTENTS_READ", 1)
    first = _files(tmp_path / "first", {str(n): b"aa" for n in range(9)})
    longer = _files(tmp_path / "longer", {str(n): b"aa" + b"b" * (n == 7) for n in range(9)})
    assert contents_digest(first) != contents_digest(longer)


def test_a_file_in_a_tar_counts_as_the_same_file_and_a_missing_one_as_empty(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"xxxaayyy")
    inside = FileRef("0.png", tmp_path / "a.tar", "in/0.png", offset=3, size=2)
    assert contents_digest([inside]) == contents_digest(_files(tmp_path / "f", {"0.png": b"aa"}))
    missing, empty = FileRef("0.png", tmp_path / "gone"), _files(tmp_path / "e", {"0.png": b""})
    assert contents_digest([missing]) == contents_digest(empty)


# Digests, subsets and splits of the bundled sets, by which runs are continued and compared. The
# values were computed on 27 November 2026, before images with classes and images with masks became
# one kind of data set. A value that changes here makes runs of users impossible to continue.


@cache
def _open(name: str) -> Dataset:
    has_classes = name == "cifar10-mini"
    return open_dataset(name, Classes("cifar10") if has_classes else Masks(surveyed=False))


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("cifar10-mini", "cc7545e74e6d798199e9c16eb09f3d65e9a521bdad4d79bb14b56ede934e4fc6"),
        ("nuclei-mini", "a665180fbf58117269af032b605822fa8aeb95aeb37449aa0a9ccdf16333aa25"),
    ],
)
def test_pinned_digests(name: str, digest: str) -> None:
    assert _open(name).digest == digest


@pytest.mark.parametrize(
    ("name", "per_class", "limit", "seed", "digest"),
    [
        ("cifar10-mini", 15, None, 0, "799dd2f458d4fcd2"),
        ("cifar10-mini", None, 37, 0, "9a02aba949d77c8f"),
        ("cifar10-mini", 12, 100, 3, "b5cf4d95a82d4427"),
        ("nuclei-mini", None, 24, 0, "804673f1a1241b6b"),
        ("nuclei-mini", None, 150, 3, "7386a143ad9ae952"),
    ],
)
def test_pinned_subsets(
    name: str, per_class: int | None, limit: int | None, seed: int, digest: str
) -> None:
    taken = take(_open(name), per_class=per_class, limit=limit, seed=seed)
    assert taken.digest.startswith(digest)


CLASSES_0 = {"train": "e0cf4c06908ccb92", "val": "6dbe543529e12e0f", "test": "5d1888e57cbb0b2f"}
CLASSES_5 = {"train": "ce632d5257afd527", "val": "c1db4247197f6911", "test": "aa05f0527d072655"}
PHOTOS = {"train": "bdcc6893e6080d85", "val": "42e0e6431befd63b", "test": "aca777313a49e3ca"}
STAINED = {"train": "f1d36518a63148cb", "val": "462c6b9ec64a8ec7", "test": "58c4e1194e64ac6f"}
PAPER = {"train": "c5ffe7daed7938f9", "val": "1c85708cd6484252", "test": "6426f31c044bc7a5"}


@pytest.mark.parametrize(
    ("name", "way", "seed", "digests", "words"),
    [
        ("cifar10-mini", "drawn", 0, CLASSES_0, "split by image in each class, seed 0"),
        ("cifar10-mini", "drawn", 5, CLASSES_5, "split by image in each class, seed 5"),
        ("nuclei-mini", "drawn", 0, PHOTOS, "split as defined by the data set"),
        ("nuclei-mini", "drawn", 5, PHOTOS, "split as defined by the data set"),
        ("nuclei-mini:stained", "drawn", 0, STAINED, "split as defined by the data set"),
        ("nuclei-mini", "paper", 0, PAPER, "split by image, seed 37"),
    ],
)
def test_pinned_splits(name: str, way: str, seed: int, digests: dict[str, str], words: str) -> None:
    dataset = _open(name)
    drawn = way == "drawn"
    splits = split_dataset(dataset, seed=seed) if drawn else paper_splits(dataset)
    parts = {part: getattr(splits, part) for part in SPLITS}
    assert {part: of.digest[:16] for part, of in parts.items()} == digests
    assert {of.subset for of in parts.values()} == {f"{part} part, {words}" for part in SPLITS}
