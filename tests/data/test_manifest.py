"""Tables: manifests with classes and with masks, files of labels, groups, and columns."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robustcli.core.errors import UsageError
from robustcli.data.dataset import FileRef
from robustcli.data.layouts import Labelled, Layout
from robustcli.data.manifest import (
    read_class_manifest,
    read_labels,
    read_mask_manifest,
    with_groups,
)
from robustcli.data.tables import Column, read_columns, read_text

FILES = [FileRef(name, Path(name)) for name in ("val_2.JPEG", "val_10.JPEG", "val_1.JPEG")]
EXPECTED = {"val_1.JPEG": "n01440764", "val_10.JPEG": "fire truck", "val_2.JPEG": "cat"}


def _read(folder: Path, content: str, name: str = "labels.txt") -> dict[str, str]:
    (folder / name).write_text(content)
    return {item.image.relative: item.label for item in read_labels(folder / name, FILES).labelled}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", "val_1.JPEG n01440764\nval_10.JPEG fire truck\nval_2.JPEG\tcat\nother.JPEG x\n"),
        ("l.txt", "val_1 n01440764\nval_10 fire truck\nval_2 cat\n"),
        ("l.csv", "path,label\nval_1.JPEG,n01440764\nval_10.JPEG,fire truck\nval_2.JPEG,cat\n"),
        ("l.tsv", "name\tclass\nval_1\tn01440764\nval_10\tfire truck\nval_2\tcat\n"),
        ("l.txt", "./val_1 n01440764\nval_10 fire truck\nval_10 fire truck\nval_2 cat\n"),
        ("l.csv", "path,label\n.\\val_1,n01440764\nval_10,fire truck\n./val_2,cat\n"),
        ("l.csv", "path,label\nx,1\nx,2\nval_1,n01440764\nval_10,fire truck\nval_2,cat\n"),
    ],
)
def test_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    assert _read(tmp_path, content, name) == EXPECTED


def test_names_of_files_may_have_spaces(tmp_path: Path) -> None:
    files = [FileRef(name, Path(name)) for name in ("my cat.jpg", "my cat 2.jpg", "my.jpg")]
    (tmp_path / "l.txt").write_text("my cat.jpg  cat\nmy cat 2.jpg great white shark\nmy dog\n")
    labels = {i.image.relative: i.label for i in read_labels(tmp_path / "l.txt", files).labelled}
    expected = {"my cat.jpg": "cat", "my cat 2.jpg": "great white shark", "my.jpg": "dog"}
    assert labels == expected


@pytest.mark.parametrize("name", ["l.txt", "l.csv"])
def test_two_labels_of_one_file_are_an_error(tmp_path: Path, name: str) -> None:
    rows = "val_1.JPEG,cat\nval_2.JPEG,cat\nval_10.JPEG,dog\n./val_1.JPEG,dog\n"
    content = f"path,label\n{rows}" if name == "l.csv" else rows.replace(",", " ")
    with pytest.raises(UsageError, match=r"lists 1 image more than once.*\n.*`val_1\.JPEG`"):
        _read(tmp_path, content, name)


def test_one_label_a_line_in_the_order_of_the_sorted_names(tmp_path: Path) -> None:
    assert _read(tmp_path, "n01440764\nfire truck\ncat\n") == EXPECTED


def test_kaggles_solution_file(tmp_path: Path) -> None:
    rows = "ImageId,PredictionString\nval_1,n03995372 85 1 499 272 \nval_10,n03481172 131 0 1 2\n"
    labels = _read(tmp_path, rows + "val_2,n02108000 38 0 1 2 n02108000 1 2 3 4\n", "LOC.csv")
    assert labels["val_1.JPEG"] == "n03995372"
    assert labels["val_10.JPEG"] == "n03481172"
    assert labels["val_2.JPEG"] == "n02108000"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("val_2.JPEG cat\n", r"no label for 2 of 3 images\.\nThe first is `val_1\.JPEG`"),
        ("cat\ndog\n", r"none of the 3 files.*but it has 2 lines\.\nUse lines `FILE LABEL`"),
    ],
)
def test_files_without_all_labels(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _read(tmp_path, content)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot read `.*none\.txt`"):
        read_labels(tmp_path / "none.txt", FILES)


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
    layout = read_labels(tmp_path / name, FILES, heard.append)
    assert {item.image.relative: item.label for item in layout.labelled} == EXPECTED
    assert any(("UTF-16" if encoding == "utf-16" else "byte order") in line for line in heard)


Photos = Callable[..., Path]


def test_paths_count_from_the_manifest(photos: Photos) -> None:
    root = photos("list/../x/a.jpg", "list/b.jpg")
    manifest = root / "list" / "m.csv"
    manifest.write_text("path,label\n../x/a.jpg,cat\n./b.jpg,dog\n")
    first, second = read_class_manifest(manifest).labelled
    assert (first.image.relative, first.label) == ("../x/a.jpg", "cat")
    assert (second.image.relative, second.label) == ("b.jpg", "dog")
    assert first.image.path.read_bytes() == (root / "x" / "a.jpg").read_bytes()


def test_a_file_under_two_paths_is_listed_twice(photos: Photos) -> None:
    root = photos("a.jpg")
    (root / "m.csv").write_text(f"path,label\na.jpg,cat\n{root / 'a.jpg'},dog\n")
    with pytest.raises(UsageError, match="lists 2 images more than once"):
        read_class_manifest(root / "m.csv")


def test_absolute_paths_stay(photos: Photos, tmp_path: Path) -> None:
    file = photos("a.jpg") / "a.jpg"
    (tmp_path / "m.csv").write_text(f"path,label\n{file},cat\n")
    assert read_class_manifest(tmp_path / "m.csv").labelled[0].image.path == file


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", r"lists no images\.\nIt has a header only"),
        ("a.jpg,cat\n./a.jpg,dog\n", r"lists 1 image more than once\.\nRepeated: `a\.jpg`"),
        ("a.jpg,cat\nb.jpg,dog\nc.jpg,dog\n", r"lists 2 of 3 files that do not exist\.\n.*b\.jpg"),
    ],
)
def test_wrong_manifests(photos: Photos, rows: str, message: str) -> None:
    root = photos("a.jpg")
    (root / "m.csv").write_text("path,label\n" + rows)
    with pytest.raises(UsageError, match=message):
        read_class_manifest(root / "m.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("cat/a.jpg,cat\ndog/b.jpg,dog\n", "without a header"),
        ("cat,cat/a.jpg\ndog,dog/b.jpg\n", "without a header"),
        ("cat/a.jpg;train;cat\ndog/b.jpg;test;dog\n", "without a header"),
        ("image_id,label\ncat/a,cat\ndog/b,dog\n", "`cat/a` = `cat/a.jpg`"),
        ("image_id,breed\na,cat\nb,dog\n", "`a` = `cat/a.jpg`"),
        ("image_id;label\na.jpg;cat\nb.jpg;dog\n", "`a.jpg` = `cat/a.jpg`"),
    ],
)
def test_tables_of_competitions(photos: Callable[..., Path], rows: str, message: str) -> None:
    root, heard = photos("cat/a.jpg", "dog/b.jpg"), list[str]()
    (root / "t.csv").write_text(rows)
    layout = read_class_manifest(root / "t.csv", heard.append)
    labelled = [(image.image.relative, image.label) for image in layout.labelled]
    assert labelled == [("cat/a.jpg", "cat"), ("dog/b.jpg", "dog")]
    assert message in " ".join(heard)


def test_a_name_that_several_files_have_is_not_guessed(photos: Callable[..., Path]) -> None:
    root = photos("cat/a.jpg", "dog/a.png")
    (root / "t.csv").write_text("image_id,label\na,cat\n")
    with pytest.raises(UsageError, match=r"lists 1 of 1 files that do not exist"):
        read_class_manifest(root / "t.csv")


def test_a_table_that_does_not_tell_is_shown(photos: Callable[..., Path]) -> None:
    root = photos("cat/a.jpg")
    (root / "t.csv").write_text("cat/a.jpg,cat,7\n")
    with pytest.raises(UsageError, match=r"For example `path,label`.*\n  cat/a\.jpg,cat,7"):
        read_class_manifest(root / "t.csv")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_manifests_of_masks(photos: Photos, suffix: str) -> None:
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
    layout = read_mask_manifest(manifest)
    assert layout.grouping == "patient"
    pairs = [(pair.image.relative, pair.group, pair.split) for pair in layout.labelled]
    assert pairs == [("x/a.jpg", "7", "train"), ("b.jpg", "8", "val")]
    assert layout.labelled[0].label.path == root / "x" / "a_m.png"


def test_without_groups_every_image_is_one(photos: Photos) -> None:
    root = photos("a.jpg", "b.jpg", "m.png")
    (root / "m.csv").write_text("image,mask\na.jpg,m.png\nb.jpg,m.png\n")
    layout = read_mask_manifest(root / "m.csv")
    assert (layout.grouping, [p.group for p in layout.labelled]) == ("image", ["a.jpg", "b.jpg"])
    assert {p.split for p in layout.labelled} == {None}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("image,mask\n", r"lists no images\.\nIt has a header only"),
        ("image,mask\na.jpg,m.png\n./a.jpg,m.png\n", r"1 image more than once\.\nRep.*`a\.j"),
        ("image,mask\na.jpg,m.png\nb.jpg,n.png\n", r"lists 2 of 4 files .*\nThe first is .*b\.jpg"),
        (
            "image,mask,split\na.jpg,m.png,dev\n",
            r"1 unknown splits\.\nColumn `split` contains `dev`;",
        ),
        ("image\na.jpg\n", r"has no column `mask`"),
        ("image,mask,patient\na.jpg,m.png,\n", r"empty cell\.\nColumn `patient`, row 1"),
    ],
)
def test_wrong_manifests_of_masks(photos: Photos, rows: str, message: str) -> None:
    root = photos("a.jpg", "m.png")
    (root / "m.csv").write_text(rows)
    with pytest.raises(UsageError, match=message):
        read_mask_manifest(root / "m.csv")


def _layout(*names: str) -> Layout[FileRef]:
    files = [FileRef(name, Path(name)) for name in names]
    return Layout(tuple(Labelled(file, file) for file in files))


def test_groups_are_given_by_id_with_or_without_suffix(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("image,slide,split\nx/a.jpg,s1,train\nb.1,s2,test\nother.jpg,s3,val\n")
    layout = with_groups(replace(_layout("b.1.png", "x/a.jpg"), tolerance=3), table)
    assert (layout.grouping, layout.tolerance) == ("slide", 3)
    pairs = [(pair.image.relative, pair.group, pair.split) for pair in layout.labelled]
    assert pairs == [("b.1.png", "s2", "test"), ("x/a.jpg", "s1", "train")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "image,class\na,1\n",
            r"no column with the group of each image\.\nExpected one of `group`, `patient`",
        ),
        (
            "image,patient\na.jpg,1\n",
            r"does not list 1 of 2 images\.\nMissing: `b\.jpg`\.\nAdd a line",
        ),
        ("image,patient,split\na,1,all\nb,2,all\n", r"contains `all`; expected `train`"),
        (
            "image,patient\na.jpg,1\nb.jpg,2\n./a.jpg,3\n",
            r"lists 1 image more than once.*\nRepeated: `a\.jpg`.\n.*exactly one patient",
        ),
    ],
)
def test_wrong_groups(rows: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text(rows)
    with pytest.raises(UsageError, match=message):
        with_groups(_layout("a.jpg", "b.jpg"), tmp_path / "groups.csv")


def test_groups_of_accented_names_and_of_other_images(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    name = unicodedata.normalize("NFD", "é.jpg")
    table.write_text(f"image,slide\n{name},s1\nother.jpg,s2\nother.jpg,s3\n", encoding="utf-8")
    (pair,) = with_groups(_layout("é.jpg"), table).labelled
    assert pair.group == "s1"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("image;mask\nimages/a.jpg;masks/a.png\n", "semicolons"),
        ("images/a.jpg,masks/a.png\n", "without a header"),
        ("masks/a.png,images/a.jpg\n", "without a header"),
        ("image_id,mask\nimages/a,masks/a\n", "`images/a` = `images/a.jpg`"),
    ],
)
def test_pairs_as_spreadsheets_write_them(photos: Photos, rows: str, message: str) -> None:
    root, heard = photos("images/a.jpg", "masks/a.png"), list[str]()
    (root / "t.csv").write_text(rows)
    (layout,) = read_mask_manifest(root / "t.csv", heard.append).labelled
    assert (layout.image.relative, layout.label.relative) == ("images/a.jpg", "masks/a.png")
    assert message in " ".join(heard)


def test_two_files_a_line_of_which_none_is_called_a_mask(photos: Photos) -> None:
    root = photos("a.jpg", "b.jpg")
    (root / "t.csv").write_text("a.jpg,b.jpg\n")
    with pytest.raises(UsageError, match=r"For example `image,mask`\. The file begins:\n  a\.jpg,"):
        read_mask_manifest(root / "t.csv")


# Tables that users write, whole and broken.


PATH, LABEL = Column("path", ("file",)), Column("label")
ROWS = {"path": ["a b.jpg", "c,d.jpg"], "label": ["cat", "7"]}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_the_three_kinds_say_the_same(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"table{suffix}"
    frame = pd.DataFrame({"File": ROWS["path"], "extra": [1.5, None], "label": ROWS["label"]})
    if suffix == ".parquet":
        frame.to_parquet(file)
    else:
        frame.to_csv(file, index=False, sep="," if suffix == ".csv" else "\t")
    assert read_columns(file, (PATH, LABEL)) == ROWS


def test_numbers_become_text_and_optional_columns_may_be_missing(tmp_path: Path) -> None:
    pd.DataFrame({"label": [3, 12]}).to_parquet(tmp_path / "t.parquet")
    columns = read_columns(tmp_path / "t.parquet", (LABEL, Column("index", required=False)))
    assert columns == {"label": ["3", "12"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,label\n1,2\n", r"no column `path`\.\nIts columns are `a`, `label`\.\n.*\(or `file`\)"),
        ("", r"no column `path`\.\nIts columns are none"),
        ("path,label\na.jpg,x,y\n", "header has 2 columns, row 1 has 3"),
        ("path,label\na.jpg,\n", "Column `label`, row 1 below the header, is empty"),
    ],
)
def test_broken_csv(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UsageError, match=message):
        read_columns(tmp_path / "t.csv", (PATH, LABEL))


def test_broken_parquet(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(UsageError, match=r"Cannot read `.*t\.parquet`"):
        read_columns(tmp_path / "t.parquet", (LABEL,))
    pd.DataFrame({"label": ["cat", None]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="row 2 below the header"):
        read_columns(tmp_path / "t.parquet", (LABEL,))


@pytest.mark.parametrize("headings", ["label,label", "Label, label", "label,LABEL"])
def test_two_columns_of_one_name_must_agree(tmp_path: Path, headings: str) -> None:
    table, columns = tmp_path / "t.csv", (Column("path"), Column("label"))
    table.write_text(f"path,{headings}\n0.png,cat,cat\n1.png,dog,dog\n")
    assert read_columns(table, columns)["label"] == ["cat", "dog"]
    table.write_text(f"path,{headings}\n0.png,cat,cat\n1.png,dog,cat\n")
    with pytest.raises(UsageError, match=r"several columns `(?i:label)`.*(?s:.*)as the label"):
        read_columns(table, columns)


def test_two_parquet_columns_of_one_name_are_an_error(tmp_path: Path) -> None:
    values = [pa.array(["0.png"]), pa.array(["cat"]), pa.array(["dog"])]
    pq.write_table(pa.table(values, names=["path", "label", "label"]), tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="several columns `label`"):
        read_columns(tmp_path / "t.parquet", (Column("path"), Column("label")))


def test_unreadable_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot read `.*t\.txt`"):
        read_text(tmp_path / "t.txt")
    (tmp_path / "t.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match=r"not a text file\.\nExpected UTF-8, but byte 3"):
        read_text(tmp_path / "t.txt")


ROW = "path{0}label\na.jpg{0}cat\nb.jpg{0}7\n"
PLAIN = {"path": ["a.jpg", "b.jpg"], "label": ["cat", "7"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROW.format(";"), "a table separated by semicolons"),
        (ROW.format("\t"), "a table separated by tabs"),
        (ROW.format("|"), "a table separated by bars"),
        ("sep=;\n" + ROW.format(";"), "a table with a first line `sep=;`"),
        ('"sep=,"\r\n' + ROW.format(","), 'a table with a first line `"sep=,"`'),
        ("sep=\t\r\n" + ROW.format("\t"), "a table with a first line `sep="),
        ("path,breed\na.jpg,cat\nb.jpg,7\n", "a table whose column `breed` is used as the label"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_tables_as_spreadsheets_write_them(
    tmp_path: Path, content: str, message: str, encoding: str
) -> None:
    file, heard = tmp_path / "t.csv", list[str]()
    file.write_bytes(content.encode(encoding))
    expected = (PATH, Column("label", remaining=True))
    assert read_columns(file, expected, say=heard.append) == PLAIN
    assert len(heard) == 1
    assert message in heard[0]
    assert ("UTF-16" in heard[0]) == encoding.startswith("utf-16")
    assert ("byte order mark" in heard[0]) == (encoding == "utf-8-sig")


def test_a_table_as_documented_needs_no_words(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(ROW.format(","))
    heard: list[str] = []
    assert read_columns(tmp_path / "t.csv", (PATH, LABEL), say=heard.append) == PLAIN
    assert not heard


def test_cells_may_hold_other_separators_and_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('path,label\n"a;\nb.jpg", "x, y"\n,\n')
    assert read_columns(tmp_path / "t.csv", (PATH, LABEL)) == {
        "path": ["a;\nb.jpg"],
        "label": ["x, y"],
    }


def test_what_is_lacking_is_said_with_the_first_lines_and_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("foto;art\na.jpg;cat\nb.jpg;dog\nc.jpg;cow\n")
    message = (
        r"no column `path`\.\nIts columns are `foto`, `art`\.\nThe first line must name a column "
        r"`path` \(or `file`\)\. For example `path;label`\. The file begins:\n  foto;art\n  a\.jpg;"
        r"cat\n  b\.jpg;dog$"
    )
    with pytest.raises(UsageError, match=message):
        read_columns(tmp_path / "t.csv", (PATH, LABEL))


def test_columns_without_a_header_are_told_by_the_caller(tmp_path: Path) -> None:
    file, heard = tmp_path / "t.csv", list[str]()
    file.write_text("cat;a.jpg\n7;b.jpg\n")
    columns = read_columns(
        file, (PATH, LABEL), say=heard.append,
        headless=lambda rows: {"path": 1, "label": 0} if len(rows[0]) == 2 else None,
    )  # fmt: skip
    assert columns == PLAIN
    assert "separated by semicolons, a table without a header" in heard[0]


def test_a_header_is_never_taken_for_a_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,species,x\na.jpg,cat,1\n")
    with pytest.raises(UsageError, match="no column `label`"):
        read_columns(
            tmp_path / "t.csv", (PATH, LABEL), headless=lambda rows: {"path": 0, "label": 1}
        )
