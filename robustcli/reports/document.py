"""The one structure that `report.md` and `report.html` are both written from."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Literal, TypeAlias

import pandas as pd
from tabulate import tabulate

from robustcli.reports.markdown import Picture
from robustcli.reports.pages import Page

Figure = Picture


@dataclass(frozen=True)
class Mono:
    """Text to be shown letter for letter: names, paths, hashes."""

    text: str


@dataclass(frozen=True)
class Strong:
    """Text that must not be overlooked."""

    text: str


Span: TypeAlias = str | Mono | Strong
Text: TypeAlias = tuple[Span, ...]


@dataclass(frozen=True)
class Heading:
    """A title; `level` 1 is the document's."""

    level: Literal[1, 2, 3]
    content: Text


@dataclass(frozen=True)
class Paragraph:
    """A run of text."""

    content: Text


@dataclass(frozen=True)
class Listing:
    """An unordered list."""

    items: tuple[Text, ...]


@dataclass(frozen=True)
class Table:
    """A table; the first `left` columns hold text, the others numbers (set to the right)."""

    header: tuple[Text, ...]
    rows: tuple[tuple[Text, ...], ...]
    left: int = 1


@dataclass(frozen=True)
class Code:
    """Lines to be copied letter for letter."""

    text: str


Block: TypeAlias = Heading | Paragraph | Listing | Table | Figure | Code


@dataclass(frozen=True)
class Document:
    """A title in plain text and the blocks below and including its heading."""

    title: str
    blocks: tuple[Block, ...] = field(default=())


def text(*spans: Span) -> Text:
    """`spans` as one text."""
    return spans


def marked(words: str) -> Text:
    """`words` of a record as one text, in which what stands between backticks is a Mono."""
    parts = words.split("`")
    if len(parts) % 2 == 0:  # one backtick has no partner
        return (words,)
    return tuple(Mono(part) if n % 2 else part for n, part in enumerate(parts) if part)


def cells(*values: Span) -> tuple[Text, ...]:
    """Table cells of one span each."""
    return tuple((value,) for value in values)


def joined(parts: Sequence[Span], separator: str = ", ") -> Text:
    """`parts` with `separator` between them."""
    spans: list[Span] = []
    for part in parts:
        spans += [separator, part] if spans else [part]
    return tuple(spans)


# A document as GitHub-flavoured Markdown.


def to_markdown(document: Document) -> str:
    """The whole page; pictures stay files beside it."""
    return "\n\n".join(_markdown_block(block) for block in document.blocks) + "\n"


def _markdown_block(block: Block) -> str:
    match block:
        case Heading(level, content):
            return f"{'#' * level} {_markdown_text(content)}"
        case Paragraph(content):
            return _markdown_text(content)
        case Listing(items):
            return "\n".join(f"- {_markdown_text(item)}" for item in items)
        case Table():
            return _markdown_table(block)
        case Figure(path, caption):
            return f"![{_escaped(caption)}]({path})\n\n*{_escaped(caption)}*"
        case Code(content):
            fence = "`" * max(3, 1 + _longest_run_of_backticks(content))
            return f"{fence}text\n{content}\n{fence}"


def _markdown_table(table: Table) -> str:
    def row(texts: tuple[Text, ...]) -> list[str]:
        return [_markdown_text(cell, in_table=True) for cell in texts]

    columns = len(table.header)
    return tabulate(
        [row(texts) for texts in table.rows],
        headers=row(table.header),
        tablefmt="github",
        disable_numparse=True,
        colalign=["left"] * table.left + ["right"] * (columns - table.left) if table.rows else None,
    )


def _markdown_text(content: Text, *, in_table: bool = False) -> str:
    return "".join(_markdown_span(span, in_table) for span in content)


def _markdown_span(span: Span, in_table: bool) -> str:
    match span:
        case Mono(content):
            fence = "`" * (1 + _longest_run_of_backticks(content))
            pad = " " if len(fence) > 1 else ""
            line = f"{fence}{pad}{' '.join(content.split())}{pad}{fence}"
            return line.replace("|", r"\|") if in_table else line
        case Strong(content):
            return f"**{_escaped(content)}**"
        case str():
            return _escaped(span)


def _escaped(content: str) -> str:
    """`content` with everything escaped that Markdown would take for a mark."""
    line = re.sub(r"\s+", " ", content)
    return re.sub(r"([\\`*<|\[\]~&]|(?<!\w)_|_(?!\w))", r"\\\1", line)


def _longest_run_of_backticks(content: str) -> int:
    return max((len(run) for run in re.findall("`+", content)), default=0)


# A document as one self-contained HTML file: the pictures are inside it.


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
    body = "\n".join(_html_block(block, folder) for block in document.blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(document.title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _html_block(block: Block, folder: Path) -> str:
    match block:
        case Heading(level, content):
            return f"<h{level}>{_html_text(content)}</h{level}>"
        case Paragraph(content):
            return f"<p>{_html_text(content)}</p>"
        case Listing(items):
            return (
                "<ul>\n" + "\n".join(f"<li>{_html_text(item)}</li>" for item in items) + "\n</ul>"
            )
        case Table():
            return _html_table(block)
        case Figure(path, caption):
            return _figure(folder / path, caption)
        case Code(content):
            return f"<pre>{escape(content)}</pre>"


def _html_table(table: Table) -> str:
    def row(texts: tuple[Text, ...], tag: str) -> str:
        marks = [' class="left"' if column < table.left else "" for column in range(len(texts))]
        parts = [f"<{tag}{m}>{_html_text(t)}</{tag}>" for m, t in zip(marks, texts, strict=True)]
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


def _html_text(content: Text) -> str:
    return "".join(_html_span(span) for span in content)


def _html_span(span: Span) -> str:
    match span:
        case Mono(content):
            return f"<code>{escape(content)}</code>"
        case Strong(content):
            return f"<strong>{escape(content)}</strong>"
        case str():
            return escape(span)


# What every kind of report consists of, and how it becomes files.


def page_of(results: pd.DataFrame, title: Text, blocks: list[Block]) -> Page:
    """The page with `title` in plain text as its document's title."""
    plain = "".join(s.text if isinstance(s, Mono | Strong) else s for s in title)
    return Page(results, to_markdown(Document(plain, tuple(blocks))))
