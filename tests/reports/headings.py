"""The order of a page's sections."""

from __future__ import annotations

from robustcli.reports.document import Heading, Page


def sections(page: Page) -> list[str]:
    return [
        "".join(str(span) for span in block.content)
        for block in page.document.blocks
        if isinstance(block, Heading) and block.level == 2
    ]
