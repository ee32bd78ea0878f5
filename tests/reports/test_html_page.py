import base64
from html.parser import HTMLParser
from pathlib import Path

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
from robustcli.reports.html_page import to_html

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
