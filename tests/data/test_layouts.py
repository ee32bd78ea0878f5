"""Classes and masks from folders and file names, and advice where they do not tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.data.advice import no_masks, no_such_folder, quoted
from robustcli.data.dataset import Dataset, FileRef, Sample
from robustcli.data.labels import LabelSpace, ModelClasses
from robustcli.data.layouts import (
    MASK_RECOGNISERS,
    Layout,
    by_class_folders,
    by_wnid_in_name,
    class_recognisers,
    find_layout,
    match_stems,
    unwrapped,
)
from robustcli.data.sources import Classes, open_dataset

Photos = Callable[..., Path]
ROOT = Path("somewhere/set")


def _files(*names: str, root: Path = ROOT) -> list[FileRef]:
    return [FileRef(name, root / name) for name in names]


def _labels(names: Sequence[str], expected: ModelClasses, *, splits: bool = False) -> list[str]:
    recognisers = class_recognisers(expected, splits=splits)
    layout = find_layout(ROOT, _files(*names), recognisers, inside=False)
    return [] if layout is None else [item.label for item in layout.labelled]


def test_the_first_folder_is_the_class_and_loose_images_are_left_out() -> None:
    labelled = by_class_folders(_files("cat/deep/a.jpg", "dog/b.jpg", "preview.jpg"))
    assert [item.label for item in labelled] == ["cat", "dog"]


@pytest.mark.parametrize(
    "name",
    [
        *("n01440764_tench.JPEG", "n01440764_18.JPEG", "n01440764-18.JPEG", "n01440764.JPEG"),
        "ILSVRC2012_val_00000293_n01440764.JPEG",
    ],
)
def test_a_wnid_in_the_file_name(name: str) -> None:
    assert [item.label for item in by_wnid_in_name(_files(name))] == ["n01440764"]


@pytest.mark.parametrize(
    "name", ["ILSVRC2012_val_00000293.JPEG", "n0144076_x.JPEG", "nn01440764.J", "cat/n01440764.JPG"]
)
def test_no_wnid_in_the_name_of_every_file(name: str) -> None:
    assert by_wnid_in_name(_files("n01440764_tench.JPEG", name)) == []


def test_labels_that_do_not_fit_are_no_labels() -> None:
    assert _labels(["val/x/a.jpg"], ModelClasses(None, "imagenet-1k")) == []
    classes = ModelClasses(LabelSpace("mine", ("val", "test"), ("val", "test")), "mine")
    assert _labels(["val/x/a.jpg"], classes) == ["val"]


@pytest.mark.parametrize(("splits", "expected"), [(True, ["cat", "dog"]), (False, [])])
def test_folders_of_splits_count_where_they_are_asked_for(
    splits: bool, expected: list[str]
) -> None:
    names = ["train/cat/a.jpg", "Validation/dog/b.jpg", "train/loose.jpg"]
    assert _labels(names, ModelClasses(None, "cifar10"), splits=splits) == expected
    assert _labels(["val/cat/a.jpg"], ModelClasses(None, "cifar10"), splits=splits) == []


def test_unwrapping_takes_one_common_folder() -> None:
    inner = unwrapped(_files("top/cat/a.jpg", "top/dog/b.jpg"))
    assert [file.relative for file in inner] == ["cat/a.jpg", "dog/b.jpg"]
    assert inner[0].path == ROOT / "top/cat/a.jpg"
    assert unwrapped(inner) == []
    assert unwrapped(_files("a.jpg")) == []


def _layout_of(names: Sequence[str]) -> Layout[FileRef]:
    layout = find_layout(ROOT, _files(*names), MASK_RECOGNISERS, inside=True)
    assert layout is not None
    return layout


def _masks(layout: Layout[FileRef]) -> dict[str, tuple[str, str | None, str | None]]:
    """Id -> mask's file below the data, group, split."""
    return {
        item.image.relative: (item.label.path.relative_to(ROOT).as_posix(), item.group, item.split)
        for item in layout.labelled
    }


def test_two_folders() -> None:
    layout = _layout_of(["images/a.jpg", "masks/a.png", "images/x/b.jpg", "masks/x/b_mask.png"])
    assert layout.grouping == "image"
    assert _masks(layout) == {
        "a.jpg": ("masks/a.png", None, None),
        "x/b.jpg": ("masks/x/b_mask.png", None, None),
    }


@pytest.mark.parametrize(
    ("names", "image_id"),
    [
        (["images/face_mask.jpg", "masks/face_mask.png"], "face_mask.jpg"),
        (["images/a.jpg", "masks/a.png", "overlays/a.png", "logo.png"], "a.jpg"),
        *(
            ([f"{prefix}{images}/a.jpg", f"{prefix}{masks}/a.png"], "a.jpg")
            for prefix in ("", "outer/", "a/b/")
            for images, masks in (("images", "masks"), ("Images", "Masks"))
        ),
    ],
)
def test_outer_and_other_folders_and_case_do_not_count(names: list[str], image_id: str) -> None:
    assert list(_masks(_layout_of(names))) == [image_id]


@pytest.mark.parametrize("prefix", ["", "kaggle_3m/", "lgg-mri-segmentation/kaggle_3m/"])
def test_patients(prefix: str) -> None:
    names = [
        f"{prefix}P{p}/P{p}_{n}{m}.tif" for p in (1, 2) for n in (1, 10) for m in ("", "_mask")
    ]
    layout = _layout_of(names)
    assert (layout.grouping, layout.tolerance) == ("patient", None)
    assert _masks(layout) == {
        f"P{p}/P{p}_{n}.tif": (f"{prefix}P{p}/P{p}_{n}_mask.tif", f"P{p}", None)
        for p in (1, 2)
        for n in (1, 10)
    }


def test_the_archive_of_kaggle_holds_everything_twice() -> None:
    inside = ["kaggle_3m/P1/P1_1.tif", "kaggle_3m/P1/P1_1_mask.tif"]
    layout = _layout_of([*inside, *(f"lgg-mri-segmentation/{name}" for name in inside)])
    assert list(_masks(layout)) == ["P1/P1_1.tif"]
    assert layout.labelled[0].image.path == ROOT / inside[0]


@pytest.mark.parametrize("prefix", ["", "tiff/", "road/tiff/"])
def test_roads(prefix: str) -> None:
    tiles = {"train": "10_15_r0c1", "val": "11_15_r2c2", "test": "12_15"}
    names = [f"{prefix}{split}/{tile}.tiff" for split, tile in tiles.items()]
    names += [f"{prefix}{split}_labels/{tile}.tif" for split, tile in tiles.items()]
    layout = _layout_of(names)
    assert (layout.grouping, layout.tolerance) == ("photo", 3)
    assert _masks(layout) == {
        "train/10_15_r0c1.tiff": (f"{prefix}train_labels/10_15_r0c1.tif", "10_15", "train"),
        "val/11_15_r2c2.tiff": (f"{prefix}val_labels/11_15_r2c2.tif", "11_15", "val"),
        "test/12_15.tiff": (f"{prefix}test_labels/12_15.tif", "12_15", "test"),
    }


def test_the_place_of_files_in_a_tar_stays() -> None:
    image = FileRef("images/i.png", ROOT, "images/i.png", 512, 9)
    mask = FileRef("masks/i.png", ROOT, "m", 1536, 7)
    layout = find_layout(ROOT, [image, mask], MASK_RECOGNISERS, inside=True)
    assert layout is not None
    (first,) = layout.labelled
    assert first.image == FileRef("i.png", ROOT, "images/i.png", 512, 9)
    assert first.label == FileRef("i.png", ROOT, "m", 1536, 7)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["images/a.jpg", "images/b.jpg", "masks/a.png"], r"1 of 2 images have no .*\n.*`b\.jpg"),
        (["images/a.jpg", "masks/a.png", "masks/b.png"], r"1 of 2 masks have no image"),
        (
            ["images/a.jpg", "images/a.png", "masks/a.png"],
            r"`a\.jpg`, `a\.png` differ only in the suffix",
        ),
        (["P/a.tif", "P/b.tif", "P/a_mask.tif"], r"1 of 2 images have no mask\.\n.*`P/b\.tif`"),
        (["P/a_mask.tif"], r"1 of 1 masks have no image"),
        (["P/a.tif", "P/a_mask.tif", "preview.png"], r"Without a mask: `preview\.png`"),
        (["tiff/val/a.tiff", "tiff/val/b.tiff", "tiff/val_labels/a.tif"], "set/val` 1 of 2 images"),
    ],
)
def test_files_without_partners(names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _layout_of(names)


def test_files_of_one_stem_belong_together() -> None:
    matched = match_stems(ROOT, _files("b.jpg", "x/a.jpg"), _files("x/a.png", "b.png"))
    names = [(image.relative, mask.relative) for image, mask in matched]
    assert names == [("b.jpg", "b.png"), ("x/a.jpg", "x/a.png")]


def test_lonely_images_and_masks_are_listed_and_counted() -> None:
    images = _files(*(f"{letter}.jpg" for letter in "abcdefg"))
    message = (
        r"In `.*set` 6 of 7 images have no mask and 1 of 2 masks have no image\.\n"
        r"Without a mask: `b\.jpg`, .*`f\.jpg` and 1 more\. Without an image: `z\.png`\.\n"
        r"Add the missing files .* in a CSV \(`image,mask`\)\."
    )
    with pytest.raises(UsageError, match=message):
        match_stems(ROOT, images, _files("a.png", "z.png"))


def _refused(data: Path, message: str, label_space: str | None = None) -> UsageError:
    with pytest.raises(UsageError, match=message) as caught:
        open_dataset(str(data), Classes("imagenet-1k", label_space))
    return caught.value


def test_folders_of_another_level(photos: Photos) -> None:
    root = photos("val/n01440764/a.jpg", "train/n01440764/a.jpg", "junk/b.jpg")
    message = r"is the parent of the class folders\.\nThe classes are the folders in `train`, `val`"
    assert _refused(root, message).todo == f"Use `--data {root / 'train'}`."
    root = photos("n01494475_1.jpg", "n01494475_2.jpg", root="n01494475")
    error = _refused(
        root, r"is the folder of a single class\.\n.*`n01494475` is the name of a class"
    )
    assert error.todo == f"Pass its parent folder: `--data {root.parent}`."


@pytest.mark.parametrize(
    ("names", "label_space", "message"),
    [
        (["a.jpg"], None, r"does not contain the classes of its images\.\n.*\nAdd `--labels FILE`"),
        (
            ["tench/a.jpg", "goldfish/b.jpg", "hammerheed/c.jpg"], None,
            r"match no known label space\.\nIt has 3: `goldfish`, `hammerheed`, `tench`\. The "
            r"label space `imagenet-1k` contains 2 of them, but not `hammerheed` \(`hammerheed`: "
            r"did you mean `hammerhead`\?\)\.\nName the classes with `--label-space FILE`",
        ),
        (
            ["aaa/a.jpg", "bbb/b.jpg"], None,
            r"It has 2: `aaa`, `bbb`\. The label space `.*` contains none of them\.",
        ),
        (
            ["cat/a.jpg", "unicorn/b.jpg"], "cifar10",
            r"not all classes of `cifar10`\.\n.*contains 1 of them",
        ),
        (
            ["2/a.jpg", "10/b.jpg"], None,
            r"are numbers, `2`, `10`\.\nIt is not known.*\nSpecify it, for example "
            r"`--label-space imag",
        ),
    ],
)  # fmt: skip
def test_folders_that_are_not_the_classes(
    names: list[str], label_space: str | None, message: str, photos: Photos
) -> None:
    _refused(photos(*names), message, label_space)


def test_no_known_layout_of_masks_shows_the_known_ones() -> None:
    files = _files("dog/b.jpg", "cat/a.jpg")
    assert find_layout(ROOT, files, MASK_RECOGNISERS, inside=True) is None
    error = no_masks(ROOT, files)
    assert error.what == "`somewhere/set` has no known layout of images and masks."
    assert error.why == "It contains 2 images, such as `cat/a.jpg`."
    for layout in ("DIR/images/NAME", "DIR/PATIENT/", "DIR/tiff/"):
        assert layout in error.todo


@pytest.mark.parametrize(
    ("root", "names"),
    [
        (ROOT / "images", ["a.jpg", "b.jpg"]),
        (ROOT / "TCGA_1", ["x_1.tif", "x_1_mask.tif", "x_2.jpg"]),
    ],
)
def test_one_level_too_low(root: Path, names: list[str]) -> None:
    files = _files(*names, root=root)
    assert find_layout(root, files, MASK_RECOGNISERS, inside=True) is None
    error = no_masks(root, files)
    assert error.what.endswith("is only one of the folders of a data set.")
    assert error.todo.endswith("somewhere/set`.")


def _dataset(*ids: str) -> Dataset:
    files = [FileRef(name, Path(name)) for name in ids]
    return Dataset("set", "place", tuple(Sample(file, file, file.relative) for file in files))


def test_the_largest_folders_are_shown() -> None:
    assert no_such_folder("set", _dataset("a.png"), "x").why == "It has no subfolders."
    ids = [f"f{folder}/{number}.png" for folder in range(7) for number in range(folder + 1)]
    error = no_such_folder("my/set", _dataset(*ids), "x")
    assert error.what == "`my/set` has no folder `x`."
    assert error.why == "Its folders: `f6` (7), `f5` (6), `f4` (5), `f3` (4), `f2` (3) and others."
    assert error.todo.startswith("Write `--data my/set:FOLDER`")


def test_long_lists_are_cut() -> None:
    assert quoted(["a"]) == "`a`"
    assert quoted(list("abcdefg")) == "`a`, `b`, `c`, `d`, `e` and 2 more"
