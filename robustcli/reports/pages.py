"""What every report consists of, how it becomes files, and of which kind a run is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from robustcli.core.io import write_text
from robustcli.core.rundir import RECORD_FILE
from robustcli.reports.html import to_html

KINDS = ("cls", "seg", "train", "finetune")
"""Of runs: evaluations of classifiers and of segmenters, trainings, fine-tunings."""


def kind_of(run: Path) -> str:
    """`train`, `finetune`, or the task of an evaluation; `cls` where that cannot be read."""
    try:
        head = json.loads((run / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "cls"  # reading it as an evaluation tells the user what is wrong
    if not isinstance(head, dict):
        return "cls"
    kind = head["kind"] if head.get("kind") in ("train", "finetune") else head.get("task")
    return kind if kind in KINDS else "cls"


@dataclass(frozen=True)
class Page:
    """A report: its numbers for other programs, and its Markdown.

    The figures that the Markdown names are drawn already.

    Args:
        results: For `results.csv` and `results.json`.
        markdown: For `report.md` and `report.html`.
        files: The contents of further files, by name.
    """

    results: pd.DataFrame
    markdown: str
    files: Mapping[str, str] = field(default_factory=dict)


def write_page(page: Page, folder: Path) -> Path:
    """Writes the files of `page` to `folder`; the path of report.md."""
    write_results(folder, page.results)
    for name, content in page.files.items():
        write_text(folder / name, content)
    write_text(folder / "report.html", to_html(page.markdown, folder))
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
    """`table` as CSV; a missing number is empty."""
    return str(table.to_csv(index=False, lineterminator="\n"))


def to_json(table: pd.DataFrame) -> str:
    """`table` as a JSON array with one record per row; shares are fractions in [0, 1].

    Raises:
        ValueError: A number is infinite, which JSON cannot say.
    """
    records = table.astype(object).where(table.notna(), None).to_dict(orient="records")
    return json.dumps(records, indent=1, allow_nan=False) + "\n"
