"""A document as GitHub-flavoured Markdown."""

from __future__ import annotations

import re

from tabulate import tabulate

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


def to_markdown(document: Document) -> str:
    """The whole page; pictures stay files beside it."""
    return "\n\n".join(_block(block) for block in document.blocks) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading(level, content):
            return f"{'#' * level} {_text(content)}"
        case Paragraph(content):
            return _text(content)
        case Listing(items):
            return "\n".join(f"- {_text(item)}" for item in items)
        case Table():
            return _table(block)
        case Figure(path, caption):
            return f"![{_escaped(caption)}]({path})\n\n*{_escaped(caption)}*"
        case Code(content):
            fence = "`" * max(3, 1 + _longest_run_of_backticks(content))
            return f"{fence}text\n{content}\n{fence}"


def _table(table: Table) -> str:
    def row(texts: tuple[Text, ...]) -> list[str]:
        return [_text(cell, in_table=True) for cell in texts]

    columns = len(table.header)
    return tabulate(
        [row(texts) for texts in table.rows],
        headers=row(table.header),
        tablefmt="github",
        disable_numparse=True,
        colalign=["left"] * table.left + ["right"] * (columns - table.left) if table.rows else None,
    )


def _text(content: Text, *, in_table: bool = False) -> str:
    return "".join(_span(span, in_table) for span in content)


def _span(span: Span, in_table: bool) -> str:
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
