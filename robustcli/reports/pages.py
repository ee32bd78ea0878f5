"""What every report consists of, and how it becomes files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from robustcli.core.io import write_text
from robustcli.reports.html import to_html
from robustcli.reports.photos import PhotoSheet


@dataclass(frozen=True)
class Page:
    """A report: its numbers for other programs, and its Markdown.

    The figures that the Markdown names are drawn already. `photos` are behind the cells of its
    tables, in HTML.
    """

    results: pd.DataFrame
    markdown: str
    photos: PhotoSheet | None = None


def write_page(page: Page, folder: Path) -> Path:
    """Writes results.csv, results.json, report.html and report.md to `folder`; the last's path."""
    write_results(folder, page.results)
    write_text(folder / "report.html", to_html(page.markdown, folder, page.photos))
    write_text(folder / "report.md", page.markdown)
    return folder / "report.md"


def write_results(run: Path, table: pd.DataFrame) -> None:
    """Writes `results.csv` and `results.json` durably; the same table gives the same bytes.

    Args:
        run: Directory of the run.
        table: `metrics.table` of the run; a missing number is empty in CSV and null in JSON.
    """
    write_text(run / "results.csv", table.to_csv(index=False, lineterminator="\n"))
    write_text(run / "results.json", to_json(table))


def to_json(table: pd.DataFrame) -> str:
    """`table` as a JSON array with one record per row; shares are fractions in [0, 1].

    Raises:
        ValueError: A number is infinite, which JSON cannot say.
    """
    records = table.astype(object).where(table.notna(), None).to_dict(orient="records")
    return json.dumps(records, indent=1, allow_nan=False) + "\n"
