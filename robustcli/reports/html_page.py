"""A document as one self-contained HTML file: the pictures are inside it."""

from __future__ import annotations

import base64
from html import escape
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
    Span,
    Strong,
    Table,
    Text,
)

STYLE = """
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.05rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right;
  vertical-align: top; }
th { border-bottom: 2px solid #888; }
.left { text-align: left; overflow-wrap: anywhere; }
tbody tr:hover { background: #f3f6fa; }
code, pre { font: 0.9em/1.4 ui-monospace, Menlo, Consolas, monospace; background: #f3f3f3; }
code { padding: 0 0.2em; overflow-wrap: anywhere; }
pre { padding: 0.7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; }
figcaption { font-size: 0.9rem; color: #444; }
@media print { body { max-width: none; } figure, tr { break-inside: avoid; } }
""".strip()


def to_html(document: Document, folder: Path) -> str:
    """The whole page.

    Args:
        document: What it says.
        folder: Where the paths of its figures start.
    """
    body = "\n".join(_block(block, folder) for block in document.blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(document.title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _block(block: Block, folder: Path) -> str:
    match block:
        case Heading(level, content):
            return f"<h{level}>{_text(content)}</h{level}>"
        case Paragraph(content):
            return f"<p>{_text(content)}</p>"
        case Listing(items):
            return "<ul>\n" + "\n".join(f"<li>{_text(item)}</li>" for item in items) + "\n</ul>"
        case Table():
            return _table(block)
        case Figure(path, caption):
            return _figure(folder / path, caption)
        case Code(content):
            return f"<pre>{escape(content)}</pre>"


def _table(table: Table) -> str:
    def row(texts: tuple[Text, ...], tag: str) -> str:
        marks = [' class="left"' if column < table.left else "" for column in range(len(texts))]
        parts = [f"<{tag}{m}>{_text(t)}</{tag}>" for m, t in zip(marks, texts, strict=True)]
        return "<tr>" + "".join(parts) + "</tr>"

    rows = "\n".join(row(texts, "td") for texts in table.rows)
    head = row(table.header, "th")
    parts = f"<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>"
    return f'<div class="wide"><table>\n{parts}\n</table></div>'


def _figure(path: Path, caption: str) -> str:
    picture = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{picture}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _text(content: Text) -> str:
    return "".join(_span(span) for span in content)


def _span(span: Span) -> str:
    match span:
        case Mono(content):
            return f"<code>{escape(content)}</code>"
        case Strong(content):
            return f"<strong>{escape(content)}</strong>"
        case str():
            return escape(span)
