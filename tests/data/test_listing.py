"""Which files count as images, and under which id."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.data.listing import MASK_SUFFIXES, is_image, list_folder, normalised_path


def test_names_of_images() -> None:
    assert all(map(is_image, ["a.JPEG", "a.jpg", "b/c.PNG", "x.webp", "y.tiff"]))
    assert not any(map(is_image, ["._a.jpg", "a.txt", "jpg", "a.jpg.part", ".jpg", "b/._c.png"]))


def test_ids_are_relative_and_hidden_things_are_left_out(photos: Callable[..., Path]) -> None:
    root = photos("cat/a.jpg", "cat/deep/b.jpg", ".git/c.jpg", "cat/._a.jpg", "d.jpg")
    (root / "cat" / "notes.txt").write_text("no image")
    files = {entry.relative: entry for entry in list_folder(root).files}
    assert set(files) == {"cat/a.jpg", "cat/deep/b.jpg", "d.jpg"}
    assert files["cat/deep/b.jpg"].path == root / "cat" / "deep" / "b.jpg"
    assert files["cat/deep/b.jpg"].folder == "cat"
    assert files["cat/deep/b.jpg"].file_name == "b.jpg"
    assert files["d.jpg"].folder is None


def test_linked_folders_are_followed_but_not_in_circles(
    photos: Callable[..., Path], tmp_path: Path
) -> None:
    root = photos("cat/a.jpg")
    photos("b.jpg", root="elsewhere")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "loop").symlink_to(root)
    assert {entry.relative for entry in list_folder(root).files} == {"cat/a.jpg", "dog/b.jpg"}


def test_ids_have_one_spelling_on_every_file_system() -> None:
    composed = unicodedata.normalize("NFC", "café/é.jpg")
    assert normalised_path(unicodedata.normalize("NFD", composed)) == composed

    assert normalised_path(b"caf\xe9.jpg".decode("utf-8", "surrogateescape")) == r"caf\xe9.jpg"


def test_two_files_whose_names_differ_in_their_unicode_form_are_named(
    photos: Callable[..., Path],
) -> None:
    root = photos(*(f"cat/{unicodedata.normalize(form, 'é')}.jpg" for form in ("NFC", "NFD")))
    if len(list((root / "cat").iterdir())) < 2:
        pytest.skip("this file system has one form of names")
    with pytest.raises(UsageError, match=r"1 name of images occur.*cat/é\.jpg.*\n.*e\\u0301\.jpg"):
        list_folder(root)


def test_a_link_to_itself_is_a_broken_link(photos: Callable[..., Path]) -> None:
    root = photos("cat/a.jpg")
    (root / "cat" / "b.jpg").symlink_to("b.jpg")
    (root / "dog").symlink_to("dog")
    assert {entry.relative for entry in list_folder(root).files} == {"cat/a.jpg", "cat/b.jpg"}


def test_photos_of_other_formats_and_broken_links_to_folders_are_reported(
    photos: Callable[..., Path],
) -> None:
    root = photos("cat/a.jpg", "cat/b.HEIC", "dog/c.avif", ".git/d.heic", "readme.txt")
    for name, target in (("bird", "/nowhere/bird"), ("LICENSE", "readme.txt"), ("n.txt", "gone")):
        (root / name).symlink_to(target)
    listing = list_folder(root)
    assert [entry.relative for entry in listing.files] == ["cat/a.jpg"]
    assert listing.unsupported == ["cat/b.HEIC", "dog/c.avif"]
    assert listing.broken_folders == ["bird"]
    first, second = listing.only(MASK_SUFFIXES).notes("data")
    assert "2 files with suffixes of images (of formats that are not supported)" in first
    assert "1 file without a suffix" in second
    assert "`bird`" in second


def test_a_folder_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, photos: Callable[..., Path]
) -> None:
    root = photos("cat/a.jpg")

    def refuse(folder: str) -> None:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr("robustcli.data.listing.os.scandir", refuse)
    with pytest.raises(UsageError, match=r"Cannot read the folder `.*data`\.\n.*Permission denied"):
        list_folder(root)


def test_a_link_to_a_folder_above_it_is_not_followed_from_a_relative_root(
    photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photos("cat/deep/a.jpg")
    (root / "cat" / "deep" / "loop").symlink_to(root / "cat")
    monkeypatch.chdir(root.parent)
    assert [entry.relative for entry in list_folder(Path("data")).files] == ["cat/deep/a.jpg"]


def test_leftovers_are_counted_without_searching_what_may_be_a_copy_of_all(
    photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photos(
        "a.jpg", ".git/b.jpg", ".snapshot/hourly/a.jpg", ".cache/c.jpg", "lost+found/d.jpg"
    )
    (root / ".cache" / "everything").symlink_to(root)
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if folder.endswith("lost+found"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr("robustcli.data.listing.os.scandir", refuse)
    listing = list_folder(root)
    assert [entry.relative for entry in listing.files] == ["a.jpg"]
    assert listing.leftovers == [".cache/c.jpg"]


def test_arrays_of_numpy_count_as_masks_only(photos: Callable[..., Path]) -> None:
    root = photos("masks/a.npy", "images/a.gif")
    assert [e.relative for e in list_folder(root).files] == ["images/a.gif"]
    assert len(list_folder(root, MASK_SUFFIXES).files) == 2
