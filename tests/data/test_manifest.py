"""Manifests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.data.manifest import read_manifest

Photos = Callable[..., Path]


def test_paths_count_from_the_manifest(photos: Photos) -> None:
    root = photos("list/../x/a.jpg", "list/b.jpg")
    manifest = root / "list" / "m.csv"
    manifest.write_text("path,label\n../x/a.jpg,cat\n./b.jpg,dog\n")
    first, second = read_manifest(manifest)
    assert (first.entry.relative, first.label) == ("../x/a.jpg", "cat")
    assert (second.entry.relative, second.label) == ("b.jpg", "dog")
    assert first.entry.path.read_bytes() == (root / "x" / "a.jpg").read_bytes()


def test_absolute_paths_stay(photos: Photos, tmp_path: Path) -> None:
    file = photos("a.jpg") / "a.jpg"
    (tmp_path / "m.csv").write_text(f"path,label\n{file},cat\n")
    assert read_manifest(tmp_path / "m.csv")[0].entry.path == file


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", r"lists no image\.\nIt has a header only"),
        ("a.jpg,cat\n./a.jpg,dog\n", r"lists `a\.jpg` 2 times"),
        ("a.jpg,cat\nb.jpg,dog\nc.jpg,dog\n", r"lists 2 of 3 files that are not there\.\n.*b\.jpg"),
    ],
)
def test_wrong_manifests(photos: Photos, rows: str, message: str) -> None:
    root = photos("a.jpg")
    (root / "m.csv").write_text("path,label\n" + rows)
    with pytest.raises(UsageError, match=message):
        read_manifest(root / "m.csv")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("cat/a.jpg,cat\ndog/b.jpg,dog\n", "without a header"),
        ("cat,cat/a.jpg\ndog,dog/b.jpg\n", "without a header"),
        ("cat/a.jpg;train;cat\ndog/b.jpg;test;dog\n", "without a header"),
        ("image_id,label\ncat/a,cat\ndog/b,dog\n", "`cat/a` = `cat/a.jpg`"),
        ("image_id,breed\na,cat\nb,dog\n", "`a` = `cat/a.jpg`"),
        ("image_id;label\na.jpg;cat\nb.jpg;dog\n", "`a.jpg` = `cat/a.jpg`"),
    ],
)
def test_tables_of_competitions(photos: Callable[..., Path], rows: str, said: str) -> None:
    root, heard = photos("cat/a.jpg", "dog/b.jpg"), list[str]()
    (root / "t.csv").write_text(rows)
    found = read_manifest(root / "t.csv", heard.append)
    assert [(one.entry.relative, one.label) for one in found] == [
        ("cat/a.jpg", "cat"),
        ("dog/b.jpg", "dog"),
    ]
    assert said in " ".join(heard)


def test_a_name_that_several_files_have_is_not_guessed(photos: Callable[..., Path]) -> None:
    root = photos("cat/a.jpg", "dog/a.png")
    (root / "t.csv").write_text("image_id,label\na,cat\n")
    with pytest.raises(UsageError, match=r"lists 1 of 1 files that are not there"):
        read_manifest(root / "t.csv")


def test_a_table_that_does_not_tell_is_shown(photos: Callable[..., Path]) -> None:
    root = photos("cat/a.jpg")
    (root / "t.csv").write_text("cat/a.jpg,cat,7\n")
    with pytest.raises(UsageError, match=r"For example `path,label`.*\n  cat/a\.jpg,cat,7"):
        read_manifest(root / "t.csv")
