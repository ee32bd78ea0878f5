"""What every kind of report consists of, and how it becomes files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from robustcli.core.atomic import write_text
from robustcli.reports.document import Block, Document, Mono, Strong, Text
from robustcli.reports.html_page import to_html
from robustcli.reports.markdown_page import to_markdown
from robustcli.reports.results import write_results


@dataclass(frozen=True)
class Page:
    """A report: its numbers for other programs, and what it says.

    The figures that the document names are drawn already.
    """

    results: pd.DataFrame
    document: Document


def page_of(results: pd.DataFrame, title: Text, blocks: list[Block]) -> Page:
    """The page with `title` in plain text as its document's title."""
    plain = "".join(s.text if isinstance(s, Mono | Strong) else s for s in title)
    return Page(results, Document(plain, tuple(blocks)))


def write_page(page: Page, folder: Path) -> Path:
    """Writes results.csv, results.json, report.html and report.md to `folder`; the last's path."""
    write_results(folder, page.results)
    write_text(folder / "report.html", to_html(page.document, folder))
    write_text(folder / "report.md", to_markdown(page.document))
    return folder / "report.md"
