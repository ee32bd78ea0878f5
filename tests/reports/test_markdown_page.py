import pytest

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
    text,
)
from robustcli.reports.markdown_page import to_markdown


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
