"""Label spaces against an independent list of ImageNet's classes."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.data.labels import LabelSpace, read_classes, read_label_space, recognise_space


def _read(folder: Path, content: str, name: str = "classes.txt") -> list[tuple[str, str]]:
    (folder / name).write_text(content, encoding="utf-8")
    return [(line.id, line.name) for line in read_classes(folder / name)]


@pytest.mark.parametrize(
    ("content", "name", "classes"),
    [
        ("cat\n\n fire truck \n", "c.txt", [("cat", "cat"), ("fire truck", "fire truck")]),
        ("n01440764 tench", "c.txt", [("n01440764", "tench")]),
        ("n01440764,tench", "c.txt", [("n01440764", "tench")]),
        ("n01440764\ttench", "c.txt", [("n01440764", "tench")]),
        ("n01440764, tench", "c.txt", [("n01440764", "tench")]),
        ("n01440764\n", "c.txt", [("n01440764", "n01440764")]),
        ("\ufeffcat\ndog\n", "c.txt", [("cat", "cat"), ("dog", "dog")]),  # a byte order mark
        ("index,wnid,name\n1,n2,dog\n0,n1,cat\n", "c.csv", [("n1", "cat"), ("n2", "dog")]),
        ("Class\ncat\ndog\n", "c.csv", [("cat", "cat"), ("dog", "dog")]),
        ("wnid\tcolour\nn1\tred\n", "c.tsv", [("n1", "n1")]),
        (
            "n01440764;tench\nn01443537;goldfish\n", "c.csv",
            [("n01440764", "tench"), ("n01443537", "goldfish")],
        ),
    ],
)  # fmt: skip
def test_classes_files(
    tmp_path: Path, content: str, name: str, classes: list[tuple[str, str]]
) -> None:
    assert _read(tmp_path, content, name) == classes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", "\n", r"`.*c\.txt` contains no class\.\nIt is empty\.\nWrite one class per line"),
        (
            "c.txt",
            "cat\ncat\n",
            r"the class `cat` 2 times\.\nEvery class must be listed exactly once",
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


def test_lines_in_utf16(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("cat\ndog\n", encoding="utf-16")
    assert [entry.name for entry in read_classes(tmp_path / "c.txt")] == ["cat", "dog"]


def test_imagenet_is_the_published_list(shared: Path) -> None:
    with (shared / "imagenet_sample" / "classes.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["index"]))
    space = read_label_space("imagenet-1k")
    assert space.ids == tuple(row["wnid"] for row in rows)
    assert space.names == tuple(row["name"] for row in rows)
    assert len(space.ids) == 1000


def test_bundled_classes_are_in_the_published_order() -> None:
    ids = read_label_space("imagenet-1k").ids
    assert list(ids) == sorted(ids)
    published = "airplane automobile bird cat deer dog frog horse ship truck"
    assert read_label_space("CIFAR10").ids == tuple(published.split())


@pytest.mark.parametrize(
    ("label", "index"),
    [
        ("n01494475", 4),
        ("hammerhead", 4),
        ("great_white_shark", 2),
        ("Great White Shark", 2),
        ("great-white-shark", 2),
        ("4", 4),
        ("0004", 4),
        ("999", 999),
        ("1000", None),
        ("-1", None),
        ("", None),
        ("n99999999", None),
        ("crane", None),
        ("n02012849", 134),
    ],
)
def test_index_of(label: str, index: int | None) -> None:
    assert read_label_space("imagenet-1k").index_of(label) == index


def test_numbers_are_no_indices_where_they_are_names() -> None:
    digits = LabelSpace("digits", ("1", "2", "3"), ("1", "2", "3"))
    assert digits.index_of("1") == 0
    assert digits.index_of("0") is None


def test_exact_spelling_wins_over_similar() -> None:
    languages = LabelSpace("languages", ("c", "c++", "c#"), ("c", "c++", "c#"))
    assert [languages.index_of(name) for name in ("c", "c++", "c#")] == [0, 1, 2]
    assert languages.index_of("C?") is None


def test_a_used_label_space_survives_pickling() -> None:
    space = read_label_space("cifar10")
    space.index_of("cat")
    assert pickle.loads(pickle.dumps(space)) == space


def test_classes_file_is_named_after_its_stem(tmp_path: Path) -> None:
    file = tmp_path / "pets.txt"
    file.write_text("cat\nwild dog\n")
    assert read_label_space(str(file)) == LabelSpace(
        "pets", ("cat", "wild dog"), ("cat", "wild dog")
    )


def test_a_file_with_the_classes_of_imagenet_is_imagenet(shared: Path) -> None:
    file = shared / "imagenet_sample" / "classes.csv"
    assert read_label_space(str(file)).name == "imagenet-1k"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagenet1k", r"called `imagenet1k`\.\nDid you mean `imagenet-1k`"),
        ("zzzzz", "`--label-space FILE` with one class per line"),
    ],
)
def test_unknown_label_spaces(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_label_space(name)


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ({"n01494475", "n01440764"}, "imagenet-1k"),
        ({"hammerhead", "tench"}, "imagenet-1k"),
        ({"cat", "dog"}, "cifar10"),
        ({"Cat", "DOG"}, "cifar10"),
        ({"cat", "unicorn"}, None),
        ({"cat", "3"}, None),
        ({"0", "1", "2"}, None),
        (set(), None),
    ],
)
def test_recognise(labels: set[str], name: str | None) -> None:
    space = recognise_space(labels)
    assert (space and space.name) == name


def test_numbers_are_recognised_as_the_complete_set_of_the_models_label_space_only() -> None:
    ten = {str(i) for i in range(10)}
    assert recognise_space(ten) is None
    assert recognise_space(ten, prefer="imagenet-1k") is None
    assert recognise_space(ten - {"9"}, prefer="cifar10") is None
    space = recognise_space(ten, prefer="cifar10")
    assert space is not None
    assert space.name == "cifar10"
