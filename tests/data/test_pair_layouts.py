"""Folder layouts of images and masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.data.listing import Entry
from robustcli.data.pair_layout import Layout
from robustcli.data.pair_layouts import find_layout

ROOT = Path("somewhere/set")


def _found(names: Sequence[str], root: Path = ROOT) -> Layout:
    return find_layout(root, [Entry(name, root / name) for name in names])


def _pairs(layout: Layout) -> dict[str, tuple[str, str, str | None]]:
    """Id -> mask's file below the data, group, split."""
    return {
        p.image_id: (p.mask.path.relative_to(ROOT).as_posix(), p.group, p.split)
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
    assert found.pairs[0].image.path == ROOT / inside[0]


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
    [(ROOT / "images", ["a.jpg", "b.jpg"]), (ROOT / "TCGA_1", ["x_1.tif", "x_1_mask.tif"])],
)
def test_one_level_too_low(root: Path, names: list[str]) -> None:
    with pytest.raises(UsageError, match=r"one level too low\.\n.*\n.*`--data .*somewhere/set`"):
        _found(names, root)
