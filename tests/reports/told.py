"""What a list of blocks says, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.reports.document import Block, Document, to_markdown
from robustcli.reports.gallery import Gallery

NO_PICTURES = Gallery((), (), (), ())


def told(blocks: Sequence[Block]) -> str:
    return to_markdown(Document("", tuple(blocks)))


def line_of(page: str, start: str) -> list[str]:
    """The cells of the first table line whose first cell starts with `start`."""
    lines = [line for line in page.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in lines[0].strip("|").split("|")]
