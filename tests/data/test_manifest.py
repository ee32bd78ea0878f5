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
