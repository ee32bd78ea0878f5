"""Manifests of pairs, and tables of groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from robustcli.core.errors import UsageError
from robustcli.data.dataset import ImageRef, PairIndex, PairRef
from robustcli.data.listing import Entry
from robustcli.data.mask_layouts import (
    Layout,
    by_key,
    find_layout,
    match,
    no_such_folder,
    pair,
    read_pairs,
    stem,
    with_groups,
)


def _index(*ids: str) -> PairIndex:
    refs = [ImageRef(name, 0, Path(name)) for name in ids]
    return PairIndex(
        "set", "place", tuple(PairRef(ref, ref, ref.image_id) for ref in refs), "image"
    )


def test_the_largest_folders_are_shown() -> None:
    ids = [f"f{folder}/{number}.png" for folder in range(7) for number in range(folder + 1)]
    error = no_such_folder("my/set", _index(*ids), "x")
    assert error.what == "`my/set` has no folder `x`."
    assert error.why == "Its folders: `f6` (7), `f5` (6), `f4` (5), `f3` (4), `f2` (3) and others."
    assert error.todo.startswith("Write `--data my/set:FOLDER`")


def test_a_set_without_folders_says_so() -> None:
    assert no_such_folder("set", _index("a.png"), "x").why == "It has no folders."


ROOT = Path("set")


def _entries(*names: str) -> dict[str, Entry]:
    return {stem(Entry(name, ROOT / name)): Entry(name, ROOT / name) for name in names}


def test_same_keys_belong_together() -> None:
    matched = match(ROOT, _entries("b.jpg", "x/a.jpg"), _entries("x/a.png", "b.png"))
    assert [(i.relative, m.relative) for i, m in matched] == [
        ("b.jpg", "b.png"),
        ("x/a.jpg", "x/a.png"),
    ]


def test_lonely_images_and_masks_are_listed_and_counted() -> None:
    images = _entries(*(f"{letter}.jpg" for letter in "abcdefg"))
    message = (
        r"In `set` 6 of 7 images have no mask and 1 of 2 masks have no image\.\n"
        r"Without a mask: `b\.jpg`, .*`f\.jpg` and 1 more\. Without an image: `z\.png`\.\n"
        r"Add the missing files .* in a CSV \(`image,mask`\)\."
    )
    with pytest.raises(UsageError, match=message):
        match(ROOT, images, _entries("a.png", "z.png"))
    with pytest.raises(UsageError, match=r"In `set` 1 of 1 masks have no image\.\nWithout an im"):
        match(ROOT, {}, _entries("z.png"))


def test_two_files_of_one_key() -> None:
    twice = [(stem(e), e) for e in (Entry("a.png", ROOT / "a.png"), Entry("a.jpg", ROOT / "a.jpg"))]
    message = r"`set` has 1 names more than once\.\n`a\.jpg`, `a\.png` differ in nothing but the"
    with pytest.raises(UsageError, match=message):
        by_key(ROOT, twice)


def test_a_pair_keeps_where_its_files_lie() -> None:
    image, mask = Entry("i.png", ROOT, "images/i.png", 512, 9), Entry("i.png", ROOT, "m", 1536, 7)
    made = pair(image, mask)
    assert (made.image_id, made.group, made.split) == ("i.png", "i.png", None)
    assert (made.image.member, made.image.offset, made.image.size) == ("images/i.png", 512, 9)
    assert (made.mask.member, made.mask.offset, made.mask.size) == ("m", 1536, 7)
    assert pair(image, mask, "p", "val").group == "p"


@pytest.mark.parametrize(("name", "bare"), [("a/b.x.png", "a/b.x"), ("a.b/c.png", "a.b/c")])
def test_stems(name: str, bare: str) -> None:
    assert stem(Entry(name, ROOT)) == bare


ROOT_PAIR_LAYOUTS = Path("somewhere/set")


def _found(names: Sequence[str], root: Path = ROOT_PAIR_LAYOUTS) -> Layout:
    return find_layout(root, [Entry(name, root / name) for name in names])


def _pairs(layout: Layout) -> dict[str, tuple[str, str, str | None]]:
    """Id -> mask's file below the data, group, split."""
    return {
        p.image_id: (p.mask.path.relative_to(ROOT_PAIR_LAYOUTS).as_posix(), p.group, p.split)
        for p in layout.pairs
    }


def test_two_folders() -> None:
    found = _found(["images/a.jpg", "masks/a.png", "images/x/b.jpg", "masks/x/b_mask.png"])
    assert found.grouping == "image"
    assert _pairs(found) == {
        "a.jpg": ("masks/a.png", "a.jpg", None),
        "x/b.jpg": ("masks/x/b_mask.png", "x/b.jpg", None),
    }


def test_a_photo_of_a_mask_keeps_its_name() -> None:
    found = _found(["images/face_mask.jpg", "masks/face_mask.png"])
    assert [p.mask.path.name for p in found.pairs] == ["face_mask.png"]


@pytest.mark.parametrize("prefix", ["", "outer/", "a/b/"])
@pytest.mark.parametrize("folders", [("images", "masks"), ("Images", "Masks")])
def test_outer_folders_and_case_do_not_count(prefix: str, folders: tuple[str, str]) -> None:
    found = _found([f"{prefix}{folders[0]}/a.jpg", f"{prefix}{folders[1]}/a.png"])
    assert [p.image_id for p in found.pairs] == ["a.jpg"]


def test_other_folders_beside_the_two_do_not_matter() -> None:
    found = _found(["images/a.jpg", "masks/a.png", "overlays/a.png", "logo.png"])
    assert [p.image_id for p in found.pairs] == ["a.jpg"]


@pytest.mark.parametrize("prefix", ["", "kaggle_3m/", "lgg-mri-segmentation/kaggle_3m/"])
def test_patients(prefix: str) -> None:
    names = [
        f"{prefix}P{p}/P{p}_{n}{m}.tif" for p in (1, 2) for n in (1, 10) for m in ("", "_mask")
    ]
    found = _found(names)
    assert (found.grouping, found.tolerance) == ("patient", None)
    assert _pairs(found) == {
        f"P{p}/P{p}_{n}.tif": (f"{prefix}P{p}/P{p}_{n}_mask.tif", f"P{p}", None)
        for p in (1, 2)
        for n in (1, 10)
    }


def test_the_archive_of_kaggle_holds_everything_twice() -> None:
    inside = ["kaggle_3m/P1/P1_1.tif", "kaggle_3m/P1/P1_1_mask.tif"]
    found = _found([*inside, *(f"lgg-mri-segmentation/{name}" for name in inside)])
    assert list(_pairs(found)) == ["P1/P1_1.tif"]
    assert found.pairs[0].image.path == ROOT_PAIR_LAYOUTS / inside[0]


@pytest.mark.parametrize("prefix", ["", "tiff/", "road/tiff/"])
def test_roads(prefix: str) -> None:
    tiles = {"train": "10_15_r0c1", "val": "11_15_r2c2", "test": "12_15"}
    names = [f"{prefix}{split}/{tile}.tiff" for split, tile in tiles.items()]
    names += [f"{prefix}{split}_labels/{tile}.tif" for split, tile in tiles.items()]
    found = _found(names)
    assert (found.grouping, found.tolerance) == ("photo", 3)
    assert _pairs(found) == {
        "train/10_15_r0c1.tiff": (f"{prefix}train_labels/10_15_r0c1.tif", "10_15", "train"),
        "val/11_15_r2c2.tiff": (f"{prefix}val_labels/11_15_r2c2.tif", "11_15", "val"),
        "test/12_15.tiff": (f"{prefix}test_labels/12_15.tif", "12_15", "test"),
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["images/a.jpg", "images/b.jpg", "masks/a.png"],
            r"1 of 2 images have no mask\.\n.*`b\.jpg",
        ),
        (["images/a.jpg", "masks/a.png", "masks/b.png"], r"1 of 2 masks have no image"),
        (["images/a.jpg", "images/a.png", "masks/a.png"], r"`a\.jpg`, `a\.png` differ in nothing"),
        (["P/a.tif", "P/b.tif", "P/a_mask.tif"], r"1 of 2 images have no mask\.\n.*`P/b\.tif`"),
        (["P/a_mask.tif"], r"1 of 1 masks have no image"),
        (["P/a.tif", "P/a_mask.tif", "preview.png"], r"Without a mask: `preview\.png`"),
        (
            ["tiff/val/a.tiff", "tiff/val/b.tiff", "tiff/val_labels/a.tif"],
            r"set/val` 1 of 2 images",
        ),
    ],
)
def test_files_without_partners(names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _found(names)


def test_no_known_layout_shows_the_known_ones() -> None:
    message = (
        r"`somewhere/set` has no known layout of images and masks\.\nIt holds 2 images, such as "
        r"`cat/a\.jpg`\.\nPut the files.*\n  DIR/images/NAME.*\n  DIR/PATIENT/.*\n  DIR/tiff/"
    )
    with pytest.raises(UsageError, match=message):
        _found(["dog/b.jpg", "cat/a.jpg"])


@pytest.mark.parametrize(
    ("root", "names"),
    [
        (ROOT_PAIR_LAYOUTS / "images", ["a.jpg", "b.jpg"]),
        (ROOT_PAIR_LAYOUTS / "TCGA_1", ["x_1.tif", "x_1_mask.tif"]),
    ],
)
def test_one_level_too_low(root: Path, names: list[str]) -> None:
    with pytest.raises(UsageError, match=r"one level too low\.\n.*\n.*`--data .*somewhere/set`"):
        _found(names, root)


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
