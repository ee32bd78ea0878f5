"""Tables that users write, whole and broken."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from robustcli.core.errors import UsageError
from robustcli.data.tables import Column, read_columns, read_text

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


def test_whole_numbers_in_parquet_become_text(tmp_path: Path) -> None:
    pd.DataFrame({"label": [3, 12]}).to_parquet(tmp_path / "t.parquet")
    assert read_columns(tmp_path / "t.parquet", (LABEL,)) == {"label": ["3", "12"]}


def test_optional_columns_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("label\ncat\n")
    found = read_columns(tmp_path / "t.csv", (LABEL, Column("index", required=False)))
    assert found == {"label": ["cat"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,label\n1,2\n", r"no column `path`\.\nIts columns are `a`, `label`\.\n.*\(or `file`\)"),
        ("", r"no column `path`\.\nIts columns are none"),
        ("path,label\na.jpg,x,y\n", "header has 2 columns, row 1 has 3"),
        ("path,label\na.jpg,\n", "Column `label`, row 1 below the header, holds nothing"),
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


def test_an_empty_cell_in_parquet(tmp_path: Path) -> None:
    pd.DataFrame({"label": ["cat", None]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="row 2 below the header"):
        read_columns(tmp_path / "t.parquet", (LABEL,))


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match=r"not a text file\.\nExpected UTF-8, but byte 3"):
        read_text(tmp_path / "t.txt")


def test_missing_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot read `.*t\.txt`"):
        read_text(tmp_path / "t.txt")
