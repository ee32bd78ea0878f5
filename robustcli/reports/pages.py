"""What every report consists of, and how it becomes files."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from robustcli.core.io import write_text
from robustcli.reports.cell_photos import PhotoSheet
from robustcli.reports.html import to_html

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of cells that spreadsheets compute. Source: OWASP, CSV Injection."""


@dataclass(frozen=True)
class Page:
    """A report: its numbers for other programs, and its Markdown.

    The figures that the Markdown names are drawn already. `photos` are behind the cells of its
    tables, in HTML.
    """

    results: pd.DataFrame
    markdown: str
    photos: PhotoSheet | None = None


def write_page(page: Page, folder: Path, photos: int | None = None) -> Path:
    """Writes results.csv, results.json, report.html and report.md to `folder`; the last's path.

    Args:
        page: The report.
        folder: Made where it does not exist.
        photos: How many photos a cell opens at most, in HTML; None for six.
    """
    sheet = page.photos
    if sheet is not None and photos is not None:
        sheet = replace(sheet, most=photos)
    write_results(folder, page.results)
    write_text(folder / "report.html", to_html(page.markdown, folder, sheet))
    write_text(folder / "report.md", page.markdown)
    return folder / "report.md"


def write_results(run: Path, table: pd.DataFrame) -> None:
    """Writes `results.csv` and `results.json` durably; the same table gives the same bytes.

    Args:
        run: Directory of the run.
        table: `metrics.table` of the run; a missing number is empty in CSV and null in JSON.
    """
    write_text(run / "results.csv", to_csv(table))
    write_text(run / "results.json", to_json(table))


def to_csv(table: pd.DataFrame) -> str:
    """`table` as CSV that is harmless in a spreadsheet.

    A text that a spreadsheet would take for a formula gets an apostrophe before it, which makes it
    a text there; numbers stay numbers.
    """
    harmless = table.copy()
    for name in table.select_dtypes(exclude="number").columns:
        harmless[name] = table[name].map(_no_formula)
    return harmless.to_csv(index=False, lineterminator="\n")


def _no_formula(value: object) -> object:
    formula = isinstance(value, str) and value.startswith(_FORMULA)
    return f"'{value}" if formula else value


def to_json(table: pd.DataFrame) -> str:
    """`table` as a JSON array with one record per row; shares are fractions in [0, 1].

    Raises:
        ValueError: A number is infinite, which JSON cannot say.
    """
    records = table.astype(object).where(table.notna(), None).to_dict(orient="records")
    return json.dumps(records, indent=1, allow_nan=False) + "\n"
