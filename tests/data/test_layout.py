"""Labels from folders and file names."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.data.labels import LabelSpace
from robustcli.data.layout import Wanted, by_file_name, by_folder, by_layout, unwrapped
from robustcli.data.listing import Entry

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
