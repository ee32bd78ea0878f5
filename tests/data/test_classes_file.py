"""Classes files in every spelling, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.data.classes_file import ClassLine, read_classes


def _read(folder: Path, content: str, name: str = "classes.txt") -> list[tuple[str, str]]:
    (folder / name).write_text(content, encoding="utf-8")
    return [(line.id, line.name) for line in read_classes(folder / name)]


def test_lines_are_names(tmp_path: Path) -> None:
    assert _read(tmp_path, "cat\n\n fire truck \n") == [("cat", "cat"), ("fire truck",) * 2]


@pytest.mark.parametrize(
    "line", ["n01440764 tench", "n01440764,tench", "n01440764\ttench", "n01440764, tench"]
)
def test_a_wnid_in_front_is_the_id(tmp_path: Path, line: str) -> None:
    assert _read(tmp_path, line) == [("n01440764", "tench")]


def test_a_wnid_alone_is_id_and_name(tmp_path: Path) -> None:
    assert _read(tmp_path, "n01440764\n") == [("n01440764", "n01440764")]


def test_a_byte_order_mark_is_not_part_of_the_first_class(tmp_path: Path) -> None:
    assert _read(tmp_path, "\ufeffcat\ndog\n")[0] == ("cat", "cat")


def test_a_table_is_put_in_index_order(tmp_path: Path) -> None:
    rows = "index,wnid,name\n1,n2,dog\n0,n1,cat\n"
    assert _read(tmp_path, rows, "classes.csv") == [("n1", "cat"), ("n2", "dog")]


def test_a_table_without_ids_or_indices(tmp_path: Path) -> None:
    assert _read(tmp_path, "Class\ncat\ndog\n", "classes.csv") == [("cat",) * 2, ("dog",) * 2]


def test_ids_alone_do(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("wnid\tcolour\nn1\tred\n")
    assert read_classes(tmp_path / "c.tsv") == (ClassLine("n1", "n1"),)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", "\n", r"`.*c\.txt` names no class\.\nIt is empty\.\nWrite one class a line"),
        (
            "c.txt",
            "cat\ncat\n",
            r"names the class `cat` 2 times\.\nEvery class must be listed once",
        ),
        ("c.csv", "index,name\n1,a\n2,b\n", "does not number its 2 classes from 0 to 1"),
        ("c.csv", "colour\nred\n", "has no column `name`"),
        ("c.csv", 'name\ncat\n""\n', "has an empty cell"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _read(tmp_path, content, name)


@pytest.mark.parametrize(
    "content",
    [
        "index;name\n0;cat\n1;dog\n",
        "sep=;\nname;index\ndog;1\ncat;0\n",
        "0;cat\n1;dog\n",
        "dog\t1\ncat\t0\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_classes_as_spreadsheets_write_them(tmp_path: Path, content: str, encoding: str) -> None:
    heard: list[str] = []
    (tmp_path / "c.csv").write_text(content, encoding=encoding)
    assert [line.name for line in read_classes(tmp_path / "c.csv", heard.append)] == ["cat", "dog"]
    assert len(heard) == 1


def test_wnids_and_names_without_a_header(tmp_path: Path) -> None:
    rows = "n01440764;tench\nn01443537;goldfish\n"
    assert _read(tmp_path, rows, "c.csv")[1] == ("n01443537", "goldfish")


def test_lines_in_utf16(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("cat\ndog\n", encoding="utf-16")
    assert [line.name for line in read_classes(tmp_path / "c.txt")] == ["cat", "dog"]
