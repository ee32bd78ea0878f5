"""Masks of several classes: which value is which class, from options, tables and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.core.io import write_text
from robustcli.data.dataset import Dataset, FileRef
from robustcli.data.mask_classes import (
    ClassesOption,
    ClassTable,
    classes_settings,
    parse_classes,
    table_of,
)
from robustcli.data.mask_values import IGNORED, MaskReading, check_no_masks
from robustcli.data.masks import decode_mask, survey
from robustcli.data.sources import Masks, open_dataset
from robustcli.tasks.heldout import in_flags, mask_values_of
from robustcli.tasks.record import class_table, dataset_record

# Values with a gap: 0 background, 1, 2 and 4 classes, 255 to ignore.
VALUES = np.array([[0, 1, 2, 2], [4, 4, 255, 0]], np.uint8)
NUMBERS = np.array([[0, 1, 2, 2], [3, 3, IGNORED, 0]], np.uint8)
LABELS = {"0": "background", "1": "liver", "2": "kidney", "4": "spleen", "255": "ignore"}
NAMES = ("liver", "kidney", "spleen")
SHADES = {0: (0, 0, 0), 1: (128, 0, 0), 2: (128, 128, 128), 4: (0, 0, 128), 255: (224, 224, 192)}


def _data(root: Path, **masks: Image.Image | NDArray[Any]) -> Path:
    """Images with these masks, whose names say how they are written: `name_png`, `name_npy`."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for key, mask in masks.items():
        name, _, suffix = key.rpartition("_")
        size = mask.size if isinstance(mask, Image.Image) else mask.shape[1::-1]
        Image.new("RGB", size).save(root / "images" / f"{name}.png")
        path = root / "masks" / f"{name}.{suffix}"
        if isinstance(mask, Image.Image):
            mask.save(path)
        elif suffix == "npy":
            np.save(path, mask)
        elif suffix == "npz":
            np.savez_compressed(path, mask=mask, spacing=np.ones(2))
        else:
            Image.fromarray(mask).save(path)
    return root


def _open(root: Path, **options: Any) -> Dataset:
    return open_dataset(str(root), Masks(**options))


def _masks(dataset: Dataset) -> list[NDArray[Any]]:
    return [decode_mask(sample.mask, dataset.reading) for sample in dataset.samples]


def _palette(order: dict[int, tuple[int, int, int]]) -> Image.Image:
    image = Image.frombytes("P", VALUES.shape[::-1], VALUES.tobytes())
    colours = [order.get(index, (1, 2, 3)) for index in range(256)]
    image.putpalette([value for colour in colours for value in colour])
    return image


def _rgb() -> NDArray[np.uint8]:
    return np.array([[SHADES[int(v)] for v in row] for row in VALUES], np.uint8)


def _hex(value: str) -> str:
    return f"#{bytes(SHADES[int(value)]).hex()}"


WAYS: dict[str, tuple[str, Any, Any]] = {
    "bytes": ("png", VALUES, LABELS),
    "numbers of 16 bits": (
        "png", VALUES.astype(np.uint16) * 200, {str(int(k) * 200): v for k, v in LABELS.items()}
    ),
    "numbers of 32 bits": ("tif", VALUES.astype(np.int32), LABELS),
    "floats": ("tif", VALUES.astype(np.float32), LABELS),
    "array": ("npy", VALUES.astype(np.int64), LABELS),
    "compressed arrays": ("npz", VALUES.astype(np.float64), LABELS),
    "palette indices": ("png", _palette(SHADES), LABELS),
    "colours of a palette": (
        "png", _palette(SHADES), {_hex(k): v for k, v in LABELS.items()}
    ),
    "colours": (
        "png", _rgb(), {_hex(k): v for k, v in LABELS.items()}
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_several_classes(way: str, tmp_path: Path) -> None:
    suffix, mask, labels = WAYS[way]
    root = _data(tmp_path, **{f"a_{suffix}": mask})
    (root / "labels.json").write_text(json.dumps(labels))
    dataset = _open(root)
    assert dataset.reading is not None
    assert dataset.reading.classes == NAMES
    (decoded,) = _masks(dataset)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, NUMBERS)
    assert dataset_record(dataset).classes == 4


@pytest.mark.parametrize(
    "classes",
    [
        "0=background,1=liver,2=kidney,4=spleen,255=ignore",
        "255=ignore,4=spleen,2=kidney,1=liver",
        {"background": 0, "liver": 1, "kidney": [2], "spleen": 4, "ignore": 255},
        ["background", "liver", "kidney", "unused", "spleen"],
    ],
)
def test_tables_in_every_notation(classes: Any, tmp_path: Path) -> None:
    option: ClassesOption = classes if isinstance(classes, str) else None
    if option is None:
        option = tmp_path / "mine.json"
        option.write_text(json.dumps(classes))
    ignore = 255 if isinstance(classes, list) else None
    dataset = _open(_data(tmp_path, a_png=VALUES), classes=option, ignore=ignore)
    assert dataset.reading is not None
    names = [name for name in dataset.reading.classes if name != "unused"]
    assert tuple(names) == NAMES
    (decoded,) = _masks(dataset)
    spleen = 4 if isinstance(classes, list) else 3  # the unused class keeps its number
    np.testing.assert_array_equal(decoded == spleen, VALUES == 4)
    np.testing.assert_array_equal(decoded == IGNORED, VALUES == 255)
    notes = [note for note in dataset.notes if "without a pixel" in note]
    assert bool(notes) == isinstance(classes, list)


def test_all_takes_every_value_of_every_mask_and_says_where_numbers_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustcli.data.masks._MOST_MASKS", 1)
    rare = np.where(VALUES == 4, 9, VALUES)
    root = _data(tmp_path, a_png=VALUES, b_png=VALUES, c_png=rare)
    dataset = _open(root, classes="all", ignore=255)
    assert dataset.reading is not None
    assert dataset.reading.classes == ("1", "2", "4", "9")
    assert [int(mask.max(initial=0, where=mask != IGNORED)) for mask in _masks(dataset)] == [
        3,
        3,
        4,
    ]
    notes = " ".join(dataset.notes)
    assert "value 4 is class 3, value 9 is class 4" in notes
    assert "255 ignored" in notes
    with_255 = _open(root, classes="all")
    assert with_255.reading is not None
    assert with_255.reading.classes[-1] == "255"
    assert any("--ignore 255" in note for note in with_255.notes)


def test_values_from_1_without_a_background_are_said_and_keep_their_numbers(tmp_path: Path) -> None:
    trimap = np.array([[1, 2, 3]], np.uint8)
    root = _data(tmp_path, a_png=trimap)
    dataset = _open(root, classes="all")
    np.testing.assert_array_equal(_masks(dataset)[0], trimap)
    assert any("No pixel of the masks is background" in note for note in dataset.notes)
    named = _open(root, classes="1=pet,2=background,3=edge")
    np.testing.assert_array_equal(_masks(named)[0], [[1, 0, 2]])


def test_value_0_can_be_a_class_where_no_class_is_the_background(tmp_path: Path) -> None:
    root = _data(tmp_path, a_png=np.array([[0, 1, 255]], np.uint8))
    dataset = _open(root, classes="0=road,1=building", ignore="255")
    np.testing.assert_array_equal(_masks(dataset)[0], [[1, 2, IGNORED]])


def test_values_of_one_name_are_one_class(tmp_path: Path) -> None:
    dataset = _open(_data(tmp_path, a_png=VALUES), classes="1=organ,2=kidney,4=organ", ignore=255)
    np.testing.assert_array_equal(_masks(dataset)[0] == 1, np.isin(VALUES, [1, 4]))


def test_palettes_of_other_order_count_by_colour_where_all_values_are_taken(tmp_path: Path) -> None:
    """Index 1 is red in one file and blue in the other."""
    first, second = (Image.frombytes("P", (3, 1), bytes([0, 1, 2])) for _ in range(2))
    first.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    second.putpalette([0, 0, 0, 0, 0, 255, 255, 0, 0])
    dataset = _open(_data(tmp_path, a_png=first, b_png=second), classes="all")
    assert dataset.reading is not None
    assert dataset.reading.classes == ("#0000ff", "#ff0000")
    assert [mask.tolist() for mask in _masks(dataset)] == [[[0, 2, 1]], [[0, 1, 2]]]


def test_a_palette_whose_used_colours_are_grey_counts_by_index_too(tmp_path: Path) -> None:
    """In the palette of PASCAL VOC index 7 is grey (128): a file with cars alone holds 0 and 7."""
    car = Image.frombytes("P", (2, 1), bytes([0, 7]))
    car.putpalette([c for i in range(256) for c in ((128,) * 3 if i == 7 else (i, 0, 0))])
    bus = Image.frombytes("P", (2, 1), bytes([0, 6]))
    bus.putpalette(car.getpalette() or [])
    dataset = _open(_data(tmp_path, a_png=car, b_png=bus), classes="6=bus,7=car")
    assert [mask.tolist() for mask in _masks(dataset)] == [[[0, 2]], [[0, 1]]]


def test_two_values_and_foreground_are_read_as_before(tmp_path: Path) -> None:
    two = _open(_data(tmp_path / "two", a_png=(VALUES > 0).astype(np.uint8) * 255))
    assert two.reading == MaskReading((255,), (0,))
    assert dataset_record(two).masks is None
    root = _data(tmp_path / "more", a_png=VALUES)
    (root / "labels.json").write_text(json.dumps(LABELS))
    dataset = _open(root, foreground="1,2", ignore=255)
    assert dataset.reading is not None
    assert dataset.reading.classes == ()
    np.testing.assert_array_equal(_masks(dataset)[0] == 1, np.isin(VALUES, [1, 2]))


def test_a_table_of_one_class_is_foreground_and_background(tmp_path: Path) -> None:
    root = _data(tmp_path, a_png=(VALUES > 0).astype(np.uint8))
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "nucleus": 1}}))
    dataset = _open(root)
    assert dataset_record(dataset).masks is None, "as data without a table"
    assert _masks(dataset)[0].dtype == np.bool_
    assert any("nucleus" in note for note in dataset.notes)


def test_jpeg_masks_of_one_class_of_a_table_are_read_with_their_blur(tmp_path: Path) -> None:
    shape = np.zeros((32, 32), np.uint8)
    shape[8:24, 8:24] = 255
    root = _data(tmp_path, a_png=shape)
    Image.fromarray(shape).save(root / "masks" / "a.jpg", quality=90)
    (root / "masks" / "a.png").unlink()
    dataset = _open(root, classes="0=background,255=lesion")
    assert (_masks(dataset)[0] != (shape > 0)).mean() < 0.01


def test_a_file_that_is_no_table_is_said_and_not_used(tmp_path: Path) -> None:
    root = _data(tmp_path, a_png=(VALUES > 0).astype(np.uint8))
    (root / "labels.json").write_text(json.dumps({"images": [], "annotations": []}))
    assert any("labels.json" in note and "is ignored" in note for note in _open(root).notes)
    (root / "labels.json").write_text("{")
    assert any("not JSON" in note for note in _open(root).notes)


def test_a_table_beside_an_archive_and_a_list_of_pairs(tmp_path: Path) -> None:
    import csv
    import zipfile

    root = _data(tmp_path / "set", a_png=VALUES)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    (tmp_path / "set.labels.json").write_text(json.dumps(LABELS))
    beside = _open(tmp_path / "set.zip")
    assert beside.reading is not None
    assert beside.reading.classes == NAMES
    with (root / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "mask"], ["images/a.png", "masks/a.png"]])
    (root / "labels.json").write_text(json.dumps(LABELS))
    listed = _open(root / "pairs.csv")
    np.testing.assert_array_equal(_masks(listed)[0], NUMBERS)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "more values and nothing said": (
        {},
        r"not known which value.*is the foreground.*--classes all",
    ),
    "with foreground": ({"classes": "all", "foreground": 1}, "cannot be used together"),
    "values outside the table": ({"classes": "1=liver,2=kidney"}, r"contain 4, 255, which"),
    "a value twice": ({"classes": "1=liver,1=kidney"}, "value 1 more than once"),
    "no class": ({"classes": "0=background", "ignore": "1,2,4,255"}, "leaves no class"),
    "no value": ({"classes": "one=liver,2=kidney"}, r"one` contains no values"),
    "no such file": ({"classes": "there/labels.json"}, "the file does not exist"),
    "an empty name": ({"classes": "1="}, "contains no classes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_options_are_named(fault: str, tmp_path: Path) -> None:
    options, message = FAULTS[fault]
    with pytest.raises(UsageError, match=rf"(?s){message}"):
        _open(_data(tmp_path, a_png=VALUES), **options)


def test_a_value_is_not_ignored_and_a_class(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 is a value to ignore and also"):
        _open(_data(tmp_path, a_png=VALUES), classes="1=liver,2=kidney,4=spleen", ignore="1,255")


def test_colours_outside_the_table_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="contain #000080, #e0e0c0, which `--classes` does not contain"
    ):
        _open(_data(tmp_path, a_png=_rgb()), classes="#800000=liver,#808080=kidney")


def test_jpeg_masks_of_several_classes_are_refused(tmp_path: Path) -> None:
    root = _data(tmp_path, a_png=VALUES)
    Image.fromarray(np.kron(VALUES, np.ones((8, 8), np.uint8))).save(root / "masks" / "a.jpg")
    (root / "masks" / "a.png").unlink()
    for classes in ("1=liver,2=kidney,4=spleen", "all"):
        with pytest.raises(UsageError, match="JPEG"):
            _open(root, classes=classes)


def test_more_classes_than_can_be_meant_are_refused(tmp_path: Path) -> None:
    objects = np.arange(300, dtype=np.uint16)[None]
    with pytest.raises(UsageError, match=r"(?s)299 classes.*--foreground nonzero"):
        _open(_data(tmp_path, a_png=objects), classes="all")


def test_regions_that_overlap_are_refused() -> None:
    with pytest.raises(UsageError, match=r"(?s)regions that overlap.*value 2, 3"):
        table_of({"background": 0, "whole": [1, 2, 3], "core": [2, 3]}, "`dataset.json`")


def test_a_file_with_an_error_does_not_count_where_an_option_decides(tmp_path: Path) -> None:
    root = _data(tmp_path, a_png=VALUES)
    (root / "dataset.json").write_text(json.dumps({"labels": {"whole": [1, 2], "core": [2]}}))
    with pytest.raises(UsageError, match="regions that overlap"):
        _open(root)
    assert _open(root, foreground="nonzero").reading is not None
    assert len(_masks(_open(root, classes="all"))) == 1


def test_tables_that_differ_in_one_depth_are_not_chosen_among(tmp_path: Path) -> None:
    root = _data(tmp_path, a_png=VALUES)
    for folder, last in (("images", "4"), ("masks", "255")):
        (root / folder / "labels.json").write_text(json.dumps({"1": "a", "2": "b", last: "c"}))
    with pytest.raises(UsageError, match=r"(?s)Several files `labels\.json`.*--classes FILE"):
        _open(root)
    (root / "labels.json").write_text(json.dumps(LABELS))
    dataset = _open(root)
    assert dataset.reading is not None
    assert dataset.reading.classes == NAMES, "the highest one counts"


def test_a_value_that_the_survey_did_not_see_is_an_error_of_its_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustcli.data.masks._MOST_MASKS", 1)
    monkeypatch.setattr("robustcli.data.masks._AT_ONCE", 1)
    refs = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.array([[0, 1, 2]], np.uint8)).save(path)
        refs.append(FileRef(path.name, path))
    reading, notes = survey(refs, "the set", classes="1=liver,2=kidney")
    assert "from 1 of 4 masks" in notes[0]
    Image.fromarray(np.array([[0, 7]], np.uint8)).save(refs[3].path)
    with pytest.raises(UsageError, match=r"(?s)3\.png` contains 7\..*--classes"):
        decode_mask(refs[3], reading)


def test_a_training_reads_its_data_in_the_same_way_later(tmp_path: Path) -> None:
    labels = {"0": "background", "1": {"name": "a, b=c", "colour": "#FF0000"}, "2": "kidney"}
    root = _data(tmp_path / "set", a_png=np.minimum(VALUES, 2), b_png=np.zeros((2, 2), np.uint8))
    (root / "labels.json").write_text(json.dumps(labels))
    dataset = _open(root)
    record = dataset_record(dataset)
    assert record.masks is not None
    assert record.masks.classes is not None
    assert [(c.name, c.values, c.colour) for c in record.masks.classes] == [
        ("a, b=c", ["1"], "#ff0000"),
        ("kidney", ["2"], None),
    ]
    run = tmp_path / "run"
    write_text(run / "run.json", json.dumps({"dataset": record.model_dump(mode="json")}))
    values = mask_values_of(run)
    assert values is not None
    assert in_flags(values) == "--classes 0=background,1=a, b=c,2=kidney"
    (root / "labels.json").unlink()
    again = _open(root, classes=values[2], ignore=values[1])
    assert dataset_record(again).masks == record.masks
    for before, after in zip(_masks(dataset), _masks(again), strict=True):
        np.testing.assert_array_equal(before, after)
    assert class_table(record.masks).labels == values[2].labels


def test_settings_of_a_run_differ_by_the_table_and_not_by_its_notation(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"1": "liver", "2": "kidney"}))
    assert classes_settings(None) == []
    assert classes_settings(file) == classes_settings("1=liver,2=kidney")
    assert classes_settings(file) != classes_settings("1=liver,3=kidney")
    assert classes_settings("all") != classes_settings("1=all")
    table = parse_classes(str(file))
    assert isinstance(table, ClassTable)
    assert parse_classes(table) is table


# One file a class.


def _class_files(root: Path, *, folders: bool = False, last: int = 255) -> Path:
    """Two images: `a` with a disc and a cup inside it, `b_1` with a disc alone."""
    disc = np.zeros((6, 6), np.uint8)
    disc[:4] = 255
    cup = np.zeros((6, 6), np.uint8)
    cup[2:5] = last
    for name, masks in (("a", {"disc": disc, "cup": cup}), ("b_1", {"disc": disc})):
        for key, mask in masks.items():
            path = root / "masks" / (f"{key}/{name}.png" if folders else f"{name}_{key}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
        (root / "images").mkdir(exist_ok=True)
        Image.new("RGB", (6, 6)).save(root / "images" / f"{name}.png")
    return root


@pytest.mark.parametrize("folders", [False, True])
def test_files_of_classes_are_joined_in_the_order_that_is_given(
    folders: bool, tmp_path: Path
) -> None:
    root = _class_files(tmp_path, folders=folders)
    dataset = _open(root, classes="disc,cup=optic cup")
    assert dataset.reading is not None
    assert dataset.reading.classes == ("disc", "optic cup")
    both, first = _masks(dataset)
    assert both[:, 0].tolist() == [1, 1, 2, 2, 2, 0]
    assert first[:, 0].tolist() == [1, 1, 1, 1, 0, 0]
    assert any("cup of 1 images" in note for note in dataset.notes)
    turned = _masks(_open(root, classes={"1": "cup", "2": "disc"}))[0]
    assert turned[:, 0].tolist() == [2, 2, 2, 2, 1, 0]
    record = dataset_record(dataset)
    assert record.masks is not None
    again = _open(root, classes=class_table(record.masks))
    assert dataset_record(again).masks == record.masks


def test_an_overlap_is_an_error_unless_the_order_is_given(tmp_path: Path) -> None:
    dataset = _open(_class_files(tmp_path))
    assert dataset.reading is not None
    assert dataset.reading.classes == ("cup", "disc")
    with pytest.raises(UsageError, match=r"(?s)overlaps the class `cup` in 12 pixels.*cup,disc`"):
        _masks(dataset)


def test_a_table_that_does_not_fit_the_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)no files of rim and no class for .* cup"):
        _open(_class_files(tmp_path), classes="disc,rim")


def test_a_class_without_pixels_in_its_files_is_said(tmp_path: Path) -> None:
    dataset = _open(_class_files(tmp_path, last=0))
    assert any("without a pixel" in note and "cup" in note for note in dataset.notes)


def test_files_of_single_objects_are_not_taken_for_classes(tmp_path: Path) -> None:
    root = _class_files(tmp_path)
    for path in sorted((root / "masks").iterdir()):
        number = "1" if "disc" in path.name else "2"
        path.rename(path.with_name(path.name.replace("disc", number).replace("cup", number)))
    with pytest.raises(UsageError, match="have no image"):
        _open(root)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"1": "liver", "1": "kidney"}', "'1' more than once"),
        ('{"1": {"name": "liver", "colour": "red"}}', "`red` is not a colour"),
        ('{"1": " "}', "name of `1` is empty"),
    ],
)
def test_tables_with_an_error_are_not_read_silently(text: str, fault: str, tmp_path: Path) -> None:
    root = _data(tmp_path, a_png=VALUES)
    (root / "labels.json").write_text(text)
    with pytest.raises(UsageError, match=fault):
        _open(root)


def test_many_classes_in_one_option() -> None:
    pairs = ",".join(f"{number}=class number {number}" for number in range(1, 60))
    table = parse_classes(pairs)
    assert table is not None
    assert [label.name for label in table.labels][-1] == "class number 59"


@pytest.mark.parametrize("folders", [("train", "val"), ("disc", "disc")])
def test_parts_and_single_masks_are_no_classes(folders: tuple[str, str], tmp_path: Path) -> None:
    for name, folder in zip("ab", folders, strict=True):
        for path in (tmp_path / "images" / f"{name}.png",
                     tmp_path / "masks" / folder / f"{name}.png"):  # fmt: skip
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 255).save(path)
    with pytest.raises(UsageError, match="have no mask"):
        _open(tmp_path)


def test_value_0_can_be_ignored_with_all_classes(tmp_path: Path) -> None:
    """So are those of ADE20K, whose classes begin at 1."""
    dataset = _open(_data(tmp_path, a_png=np.array([[0, 1, 2]], np.uint8)), classes="all", ignore=0)
    np.testing.assert_array_equal(_masks(dataset)[0], [[IGNORED, 1, 2]])
    assert not any("background" in note for note in dataset.notes)


def test_files_of_classes_are_not_read_as_one_foreground(tmp_path: Path) -> None:
    root = _class_files(tmp_path)
    with pytest.raises(UsageError, match="--foreground 255` cannot be used with"):
        _open(root, foreground=255)
    with pytest.raises(UsageError, match="two classes the same name"):
        _open(root, classes="disc=eye,cup=eye")


def test_a_key_may_hold_several_values(tmp_path: Path) -> None:
    dataset = _open(
        _data(tmp_path, a_png=VALUES), classes={"1,4": "organ", "2": "kidney"}, ignore=255
    )
    np.testing.assert_array_equal(_masks(dataset)[0] == 1, np.isin(VALUES, [1, 4]))


def test_classes_of_masks_do_not_go_with_classifiers() -> None:
    check_no_masks(None, None, None)
    with pytest.raises(UsageError, match="--classes all` cannot be used with classifiers"):
        check_no_masks(None, None, "all")
