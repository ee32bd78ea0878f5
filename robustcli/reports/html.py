"""A Markdown page as one self-contained HTML file: its pictures are inside it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

STYLE = """
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.05rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; vertical-align: top; }
th { border-bottom: 2px solid #888; }
[style="text-align:left"] { overflow-wrap: anywhere; min-width: 5em; }
tbody tr:hover { background: #f3f6fa; }
code, pre { font: 0.9em/1.4 ui-monospace, Menlo, Consolas, monospace; background: #f3f3f3; }
code { padding: 0 0.2em; overflow-wrap: anywhere; }
pre { padding: 0.7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
pre code { padding: 0; font: inherit; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; }
figcaption { font-size: 0.9rem; color: #444; }
@media print { body { max-width: none; } figure, tr { break-inside: avoid; } }
""".strip()


def to_html(markdown: str, folder: Path) -> str:
    """The whole page; its title is the text of the first heading.

    Args:
        markdown: With a heading, and with each picture followed by its caption in italics. HTML in
            it is shown, not obeyed.
        folder: Where the paths of its pictures start.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    heading = next(token for token in tokens if token.type == "inline")
    title = "".join(child.content for child in heading.children or ())
    body = parser.renderer.render(list(_dressed(tokens, folder)), parser.options, {})
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def _dressed(tokens: Sequence[Token], folder: Path) -> Iterator[Token]:
    """`tokens` with tables that scroll on their own, and pictures with captions as figures."""
    waiting = iter(enumerate(tokens))
    for index, token in waiting:
        picture = _picture(tokens[index : index + 3])
        if picture is not None:
            yield _raw(_figure(picture, folder))
            for _ in range(5):  # the rest of the paragraphs of the picture and of its caption
                next(waiting)
            continue
        if token.type == "table_open":
            yield _raw('<div class="wide">')
        yield token
        if token.type == "table_close":
            yield _raw("</div>\n")


def _picture(paragraph: Sequence[Token]) -> Token | None:
    """The picture that is all of a paragraph, None for other paragraphs."""
    if [token.type for token in paragraph] != ["paragraph_open", "inline", "paragraph_close"]:
        return None
    children = paragraph[1].children or []
    return children[0] if [child.type for child in children] == ["image"] else None


def _figure(image: Token, folder: Path) -> str:
    path = folder / unquote(str(image.attrs["src"]))
    picture = base64.b64encode(path.read_bytes()).decode("ascii")
    caption = escape("".join(child.content for child in image.children or ()))
    return (
        f'<figure><img src="data:image/png;base64,{picture}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def _raw(content: str) -> Token:
    return Token("html_block", "", 0, content=content)
