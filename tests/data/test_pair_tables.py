"""Manifests of pairs, and tables of groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from robustcli.core.errors import UsageError
from robustcli.data.listing import Entry
from robustcli.data.pair_layout import Layout, pair
from robustcli.data.pair_tables import read_pairs, with_groups

Photos = Callable[..., Path]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_manifests(photos: Photos, suffix: str) -> None:
    root = photos("x/a.jpg", "x/a_m.png", "b.jpg", "b_m.png")
    frame = pd.DataFrame(
        {
            "image": ["x/a.jpg", "./b.jpg"],
            "mask": ["x/a_m.png", "b_m.png"],
            "patient": [7, 8],
            "split": ["Training", "valid"],
        }
    )
    manifest = root / f"m{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(manifest)
    else:
        frame.to_csv(manifest, index=False, sep="," if suffix == ".csv" else "\t")
    found = read_pairs(manifest)
    assert found.grouping == "patient"
    assert [(p.image_id, p.group, p.split) for p in found.pairs] == [
        ("x/a.jpg", "7", "train"),
        ("b.jpg", "8", "val"),
    ]
    assert found.pairs[0].mask.path == root / "x" / "a_m.png"


def test_without_groups_every_image_is_one(photos: Photos) -> None:
    root = photos("a.jpg", "b.jpg", "m.png")
    (root / "m.csv").write_text("image,mask\na.jpg,m.png\nb.jpg,m.png\n")
    found = read_pairs(root / "m.csv")
    assert (found.grouping, [p.group for p in found.pairs]) == ("image", ["a.jpg", "b.jpg"])
    assert {p.split for p in found.pairs} == {None}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("image,mask\n", r"lists no pair\.\nIt has a header only"),
        (
            "image,mask\na.jpg,m.png\n./a.jpg,m.png\n",
            r"lists 1 images more than once\.\nRep.*`a\.j",
        ),
        ("image,mask\na.jpg,m.png\nb.jpg,n.png\n", r"lists 2 of 4 files .*\nThe first is .*b\.jpg"),
        ("image,mask,split\na.jpg,m.png,dev\n", r"1 unknown splits\.\nColumn `split` holds `dev`;"),
        ("image\na.jpg\n", r"has no column `mask`"),
        ("image,mask,patient\na.jpg,m.png,\n", r"empty cell\.\nColumn `patient`, row 1"),
    ],
)
def test_wrong_manifests(photos: Photos, rows: str, message: str) -> None:
    root = photos("a.jpg", "m.png")
    (root / "m.csv").write_text(rows)
    with pytest.raises(UsageError, match=message):
        read_pairs(root / "m.csv")


def _layout(*names: str) -> Layout:
    entries = [Entry(name, Path(name)) for name in names]
    return Layout(tuple(pair(entry, entry) for entry in entries), "image")


def test_groups_are_given_by_id_with_or_without_suffix(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("image,slide,split\nx/a.jpg,s1,train\nb.1,s2,test\nother.jpg,s3,val\n")
    found = with_groups(_layout("b.1.png", "x/a.jpg"), table)
    assert found.grouping == "slide"
    assert [(p.image_id, p.group, p.split) for p in found.pairs] == [
        ("b.1.png", "s2", "test"),
        ("x/a.jpg", "s1", "train"),
    ]


def test_groups_leave_the_tolerance_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("image,photo\na,1\n")
    layout = replace(_layout("a.png"), tolerance=3)
    assert with_groups(layout, tmp_path / "groups.csv").tolerance == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("image,class\na,1\n", r"no column for the group\.\nExpected one of `group`, `patient`"),
        ("image,patient\na.jpg,1\n", r"lacks 1 of 2 images\.\nNot in it: `b\.jpg`\.\nAdd a line"),
        ("image,patient,split\na,1,all\nb,2,all\n", r"holds `all`; expected `train`"),
    ],
)
def test_wrong_groups(rows: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text(rows)
    with pytest.raises(UsageError, match=message):
        with_groups(_layout("a.jpg", "b.jpg"), tmp_path / "groups.csv")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("image;mask\nimages/a.jpg;masks/a.png\n", "semicolons"),
        ("images/a.jpg,masks/a.png\n", "without a header"),
        ("masks/a.png,images/a.jpg\n", "without a header"),
        ("image_id,mask\nimages/a,masks/a\n", "`images/a` = `images/a.jpg`"),
    ],
)
def test_pairs_as_spreadsheets_write_them(photos: Photos, rows: str, said: str) -> None:
    root, heard = photos("images/a.jpg", "masks/a.png"), list[str]()
    (root / "t.csv").write_text(rows)
    (found,) = read_pairs(root / "t.csv", heard.append).pairs
    assert (found.image_id, found.mask.image_id) == ("images/a.jpg", "masks/a.png")
    assert said in " ".join(heard)


def test_two_files_a_line_of_which_none_is_called_a_mask(photos: Photos) -> None:
    root = photos("a.jpg", "b.jpg")
    (root / "t.csv").write_text("a.jpg,b.jpg\n")
    with pytest.raises(UsageError, match=r"For example `image,mask`\. The file begins:\n  a\.jpg,"):
        read_pairs(root / "t.csv")
