"""What names a data set, and a part of it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from robustcli.data.dataset import Dataset, FileRef, Sample, contents_digest
from robustcli.data.labels import read_label_space

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
