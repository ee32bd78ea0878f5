"""Manifests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.data.listing import Entry
from robustcli.data.manifest import read_labels, read_manifest

ENTRIES = [Entry(name, Path(name)) for name in ("val_2.JPEG", "val_10.JPEG", "val_1.JPEG")]
EXPECTED = {"val_1.JPEG": "n01440764", "val_10.JPEG": "fire truck", "val_2.JPEG": "cat"}


def _read(folder: Path, content: str, name: str = "labels.txt") -> dict[str, str]:
    (folder / name).write_text(content)
    return {one.entry.relative: one.label for one in read_labels(folder / name, ENTRIES)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", "val_1.JPEG n01440764\nval_10.JPEG fire truck\nval_2.JPEG\tcat\nother.JPEG x\n"),
        ("l.txt", "val_1 n01440764\nval_10 fire truck\nval_2 cat\n"),
        ("l.csv", "path,label\nval_1.JPEG,n01440764\nval_10.JPEG,fire truck\nval_2.JPEG,cat\n"),
        ("l.tsv", "name\tclass\nval_1\tn01440764\nval_10\tfire truck\nval_2\tcat\n"),
    ],
)
def test_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    assert _read(tmp_path, content, name) == EXPECTED


def test_one_label_a_line_in_the_order_of_the_sorted_names(tmp_path: Path) -> None:
    assert _read(tmp_path, "n01440764\nfire truck\ncat\n") == EXPECTED


def test_kaggles_solution_file(tmp_path: Path) -> None:
    rows = "ImageId,PredictionString\nval_1,n03995372 85 1 499 272 \nval_10,n03481172 131 0 1 2\n"
    labels = _read(tmp_path, rows + "val_2,n02108000 38 0 1 2 n02108000 1 2 3 4\n", "LOC.csv")
    assert labels["val_1.JPEG"] == "n03995372"
    assert labels["val_10.JPEG"] == "n03481172"
    assert labels["val_2.JPEG"] == "n02108000"


def test_an_image_without_a_label(tmp_path: Path) -> None:
    message = r"has no label for 2 of 3 images\.\nThe first is `val_1\.JPEG`"
    with pytest.raises(UsageError, match=message):
        _read(tmp_path, "val_2.JPEG cat\n")


def test_a_wrong_number_of_lines(tmp_path: Path) -> None:
    message = r"names none of the 3 files.*but it has 2 lines\.\nUse lines `FILE LABEL`"
    with pytest.raises(UsageError, match=message):
        _read(tmp_path, "cat\ndog\n")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot read `.*none\.txt`"):
        read_labels(tmp_path / "none.txt", ENTRIES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "val_1.JPEG;n01440764\nval_10.JPEG;fire truck\nval_2.JPEG;cat\n"),
        ("l.csv", "label;image_id\nn01440764;val_1\nfire truck;val_10\ncat;val_2\n"),
        ("l.csv", "image_id,breed\nval_1,n01440764\nval_10,fire truck\nval_2,cat\n"),
        ("l.txt", "val_1.JPEG,n01440764\nval_10.JPEG,fire truck\nval_2.JPEG,cat\n"),
        ("l.txt", "sep=;\nfile;label\nval_1;n01440764\nval_10;fire truck\nval_2;cat\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_labels_as_spreadsheets_write_them(
    tmp_path: Path, name: str, content: str, encoding: str
) -> None:
    heard: list[str] = []
    (tmp_path / name).write_text(content, encoding=encoding)
    found = read_labels(tmp_path / name, ENTRIES, heard.append)
    assert {one.entry.relative: one.label for one in found} == EXPECTED
    assert any(("UTF-16" if encoding == "utf-16" else "byte order") in line for line in heard)


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
