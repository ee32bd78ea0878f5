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
