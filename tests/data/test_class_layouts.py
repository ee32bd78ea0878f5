"""Labels from folders and file names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.data.class_layouts import (
    Wanted,
    by_file_name,
    by_folder,
    by_layout,
    listed,
    unwrapped,
)
from robustcli.data.labels import LabelSpace
from robustcli.data.listing import Entry
from robustcli.data.sources import open_index

Photos = Callable[..., Path]


def _refused(data: Path, message: str, label_space: str | None = None) -> UsageError:
    with pytest.raises(UsageError, match=message) as caught:
        open_index(str(data), model_label_space="imagenet-1k", label_space=label_space)
    return caught.value


def test_an_empty_folder(tmp_path: Path) -> None:
    error = _refused(tmp_path, r"holds no images\.\nFiles that end in \.bmp, \.gif, \.jpeg")
    assert error.todo == "Name the folder whose subfolders are the classes."


def test_a_folder_of_tars(tmp_path: Path) -> None:
    (tmp_path / "val.tar").touch()
    error = _refused(tmp_path, "holds no images")
    assert error.todo == f"To read a tar there, name it: `--data {tmp_path / 'val.tar'}`."


def test_one_level_too_high(photos: Photos) -> None:
    root = photos("val/n01440764/a.jpg", "train/n01440764/a.jpg", "junk/b.jpg")
    error = _refused(
        root, r"one level too high\.\nThe folders below `train`, `val` are the classes"
    )
    assert error.todo == f"Use `--data {root / 'train'}`."


def test_the_folder_of_one_class(photos: Photos) -> None:
    root = photos("n01494475_1.jpg", "n01494475_2.jpg", root="n01494475")
    error = _refused(root, r"is the folder of a single class\.\n.*`n01494475` is a class")
    assert error.todo == f"Name the folder above it: `--data {root.parent}`."


def test_a_flat_folder_without_labels(photos: Photos) -> None:
    _refused(photos("a.jpg"), r"does not say what its images show\.\n.*\nAdd `--labels FILE`")


def test_some_folders_are_classes(photos: Photos) -> None:
    _refused(
        photos("tench/a.jpg", "goldfish/b.jpg", "hammerheed/c.jpg"),
        r"classes of no known label space\.\n"
        r"It has 3: `goldfish`, `hammerheed`, `tench`\. The label space `imagenet-1k` knows 2 of "
        r"them, but not `hammerheed` \(`hammerheed`: did you mean `hammerhead`\?\)\.\n"
        r"Name the classes with `--label-space FILE`",
    )


def test_no_folder_is_a_class(photos: Photos) -> None:
    root = photos("aaa/a.jpg", "bbb/b.jpg")
    _refused(root, r"It has 2: `aaa`, `bbb`\. The label space `.*` knows none of them\.")


def test_folders_outside_the_given_label_space(photos: Photos) -> None:
    root = photos("cat/a.jpg", "unicorn/b.jpg")
    _refused(root, r"not all classes of `cifar10`\.\n.*knows 1 of them", label_space="cifar10")


def test_numbers_alone(photos: Photos) -> None:
    message = r"are numbers, `2`, `10`\.\nNumbers alone.*\nSay so, for example `--label-space imag"
    _refused(photos("2/a.jpg", "10/b.jpg"), message)


def test_long_lists_are_cut() -> None:
    assert listed(["a"]) == "`a`"
    assert listed(list("abcdefg")) == "`a`, `b`, `c`, `d`, `e` and 2 more"


ANY = Wanted(None, "imagenet-1k")


def _entries(*names: str) -> list[Entry]:
    return [Entry(name, Path(name)) for name in names]


def test_the_first_folder_is_the_label_and_loose_images_are_left_out() -> None:
    labelled = by_folder(_entries("cat/deep/a.jpg", "dog/b.jpg", "preview.jpg"))
    assert [one.label for one in labelled] == ["cat", "dog"]


@pytest.mark.parametrize(
    "name",
    [
        "n01440764_tench.JPEG",
        "n01440764_18.JPEG",
        "n01440764-18.JPEG",
        "n01440764.JPEG",
        "ILSVRC2012_val_00000293_n01440764.JPEG",
    ],
)
def test_a_wnid_in_the_file_name(name: str) -> None:
    assert [one.label for one in by_file_name(_entries(name))] == ["n01440764"]


@pytest.mark.parametrize(
    "name", ["ILSVRC2012_val_00000293.JPEG", "n0144076_x.JPEG", "nn01440764.J"]
)
def test_no_wnid_in_the_file_name(name: str) -> None:
    assert by_file_name(_entries("n01440764_tench.JPEG", name)) == []


def test_labels_that_do_not_fit_are_no_labels() -> None:
    assert by_layout(_entries("val/x/a.jpg"), ANY) == []
    given = Wanted(LabelSpace("mine", ("val", "test"), ("val", "test")), "mine")
    assert [one.label for one in by_layout(_entries("val/x/a.jpg"), given)] == ["val"]


def test_unwrapping_takes_one_common_folder() -> None:
    inner = unwrapped(_entries("top/cat/a.jpg", "top/dog/b.jpg"))
    assert [entry.relative for entry in inner] == ["cat/a.jpg", "dog/b.jpg"]
    assert inner[0].path == Path("top/cat/a.jpg")
    assert unwrapped(inner) == []
    assert unwrapped(_entries("a.jpg")) == []
