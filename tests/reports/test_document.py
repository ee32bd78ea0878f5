""""""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robustcli.evaluation.cell_table import table
from robustcli.reports.document import (
    Block,
    Code,
    Document,
    Figure,
    Heading,
    Listing,
    Mono,
    Paragraph,
    Strong,
    Table,
    cells,
    joined,
    marked,
    page_of,
    text,
    to_html,
    to_json,
    to_markdown,
    write_page,
    write_results,
)
from tests.builders import IDENTITY, RunPlan, build_run, paper21


def test_the_title_is_plain_and_all_four_files_are_written(tmp_path: Path) -> None:
    title = text("Dice of ", Mono("a<b"), " is ", Strong("high"))
    page = page_of(pd.DataFrame({"dice": [0.5]}), title, [Heading(1, title)])
    assert page.document.title == "Dice of a<b is high"
    assert write_page(page, tmp_path / "new") == tmp_path / "new" / "report.md"
    assert (tmp_path / "new/report.md").read_text() == "# Dice of `a<b` is **high**\n"
    assert "<title>Dice of a&lt;b is high</title>" in (tmp_path / "new/report.html").read_text()
    assert (tmp_path / "new/results.csv").read_text() == "dice\n0.5\n"
    assert (tmp_path / "new/results.json").is_file()


def test_parts_are_joined_with_a_separator_between_them() -> None:
    assert joined([Mono("a"), "b", Mono("c")], " + ") == (Mono("a"), " + ", "b", " + ", Mono("c"))
    assert joined([]) == ()


def test_cells_are_texts_of_one_span() -> None:
    assert cells("a", Mono("b")) == (text("a"), text(Mono("b")))


def test_what_stands_between_backticks_is_shown_letter_for_letter() -> None:
    assert marked("part of `a_b` and `c`.") == ("part of ", Mono("a_b"), " and ", Mono("c"), ".")
    assert marked("no marks") == ("no marks",)
    assert marked("a lone ` mark") == ("a lone ` mark",)


VOID = {"meta", "img"}


class Outline(HTMLParser):
    """Collects the text per tag and checks that every tag is closed where it was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, str]] = []
        self.images: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.found.append((self.open[-1], data))


def outline(folder: Path, *blocks: Block) -> Outline:
    parser = Outline()
    parser.feed(to_html(Document("A <title>", blocks), folder))
    parser.close()
    assert parser.open == []
    parser.found = [(tag, data) for tag, data in parser.found if tag != "style"]
    return parser


def test_every_block_has_its_tag_and_shows_text_letter_for_letter(tmp_path: Path) -> None:
    blocks = (
        Heading(2, text("H & H")),
        Paragraph(text(Strong("S."), " <i>", Mono("a<b"))),
        Listing((text("item"),)),
        Code("x > 1"),
    )
    assert outline(tmp_path, *blocks).found == [
        ("title", "A <title>"),
        ("h2", "H & H"),
        ("strong", "S."),
        ("p", " <i>"),
        ("code", "a<b"),
        ("li", "item"),
        ("pre", "x > 1"),
    ]


def test_a_table_has_its_cells_in_order(tmp_path: Path) -> None:
    table = Table(cells("name", "n"), (cells("a", "1"), cells("b", "2")))
    found = outline(tmp_path, table).found[1:]
    assert found == [("th", "name"), ("th", "n"), *[("td", value) for value in "a1b2"]]


def test_pictures_are_inside_the_page(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG picture")
    (image,) = outline(tmp_path, Figure("a.png", 'Says "hello"')).images
    kind, _, content = str(image["src"]).partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == b"\x89PNG picture"
    assert image["alt"] == 'Says "hello"'


def rendered(block: Block) -> str:
    return to_markdown(Document("", (block,))).removesuffix("\n")


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        (Heading(2, text("Title ", Mono("a_b"))), "## Title `a_b`"),
        (Paragraph(text(Strong("Subset."), " 3 of 5")), "**Subset.** 3 of 5"),
        (Listing((text("one"), text(Mono("two")))), "- one\n- `two`"),
        (Figure("figures/a.png", "What *it* is"), None),
        (Code("robust eval"), "```text\nrobust eval\n```"),
        (Code("a ``` b"), "````text\na ``` b\n````"),
    ],
)
def test_blocks(block: Block, shown: str | None) -> None:
    if shown is None:
        shown = "![What \\*it\\* is](figures/a.png)\n\n*What \\*it\\* is*"
    assert rendered(block) == shown


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("<b> a|b [x](y)", r"\<b> a\|b \[x\](y)"),
        ("fast_snowy _x_", r"fast_snowy \_x\_"),
        ("two\nlines", "two lines"),
        ("`tick` \\ & ~", r"\`tick\` \\ \& \~"),
    ],
)
def test_text_is_shown_letter_for_letter(raw: str, shown: str) -> None:
    assert rendered(Paragraph(text(raw))) == shown


@pytest.mark.parametrize(("raw", "shown"), [("a`b", "`` a`b ``"), ("a\nb", "`a b`")])
def test_mono_survives_backticks_and_line_breaks(raw: str, shown: str) -> None:
    assert rendered(Paragraph(text(Mono(raw)))) == shown


def test_a_table_is_aligned_and_its_pipes_do_not_split_cells() -> None:
    table = Table(cells("name", "top-1"), (cells(Mono("a|b"), "84.0"), cells("c|d", "9.5")))
    head, rule, first, second = rendered(table).splitlines()
    assert head.split("|")[1].strip() == "name"
    assert set(rule) == {"|", "-"}
    assert r"`a\|b`" in first
    assert r"c\|d" in second
    assert first.endswith("    84.0 |")
    assert second.endswith("     9.5 |")


def test_a_table_without_rows_has_its_header() -> None:
    assert "name" in rendered(Table(cells("name", "top-1"), ()))


@pytest.fixture
def numbers(tmp_path: Path) -> pd.DataFrame:
    numbers = table(build_run(tmp_path, RunPlan(transforms=(IDENTITY, *paper21()[:3]))))
    numbers.loc[2, "retention"] = np.nan
    return numbers


def test_both_files_hold_the_unrounded_table(tmp_path: Path, numbers: pd.DataFrame) -> None:
    write_results(tmp_path, numbers)
    csv = pd.read_csv(tmp_path / "results.csv")  # pandas 2 misses the last bits, by 1.4e-15
    pd.testing.assert_frame_equal(csv, numbers, rtol=4e-15, atol=0)
    records = json.loads((tmp_path / "results.json").read_text())
    pd.testing.assert_frame_equal(pd.DataFrame(records), numbers, check_exact=True)


def test_a_missing_number_is_null_in_json_and_empty_in_csv(
    tmp_path: Path, numbers: pd.DataFrame
) -> None:
    write_results(tmp_path, numbers)
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    records = json.loads(text)
    assert records[2]["retention"] is None
    assert records[0]["psnr_db"] is None
    header, identity, *_ = (tmp_path / "results.csv").read_text().splitlines()
    assert identity.split(",")[header.split(",").index("psnr_db")] == ""


def test_counts_are_whole_numbers(numbers: pd.DataFrame) -> None:
    record = json.loads(to_json(numbers))[1]
    assert (record["n"], record["severity"]) == (60, 0)
    assert all(isinstance(record[name], int) for name in ("n", "correct", "severity", "paired_n"))


def test_infinity_never_reaches_a_file(numbers: pd.DataFrame) -> None:
    numbers.loc[0, "psnr_db"] = np.inf
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(numbers)
