"""The parts of a report, writing them to files, and the kind of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pandas as pd
from tabulate import tabulate

from robustcli.core.errors import UsageError
from robustcli.core.io import TEMPORARY_FILES, parse_json, remove_leftovers, to_csv, write_text
from robustcli.core.names import printable
from robustcli.core.rundir import RECORD_FILE, has_record
from robustcli.reports.cell_photos import PhotoSheet
from robustcli.reports.html import to_html
from robustcli.reports.numbers import EN_DASH

KINDS = ("cls", "seg", "train", "finetune", "explanation", "seeds")
"""The kinds of runs.

Evaluations of classifiers and of segmenters, trainings, fine-tunings, explanations, and several
seeds of a training or fine-tuning.
"""


def run_kind(run: Path) -> str:
    """The kind of a run; the task for evaluations, `cls` if the record cannot be read."""
    try:
        head = parse_json((run / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "cls"  # reading it as an evaluation raises an error with the reason
    if not isinstance(head, dict):
        return "cls"
    kind = head["kind"] if head.get("kind") in KINDS else head.get("task")
    return kind if kind in KINDS else "cls"


@dataclass(frozen=True)
class Page:
    """A report: its results for other programs, and its Markdown.

    The figures that the Markdown refers to must exist already.

    Args:
        results: Table for `results.csv` and `results.json`.
        markdown: Text for `report.md` and `report.html`.
        files: Contents of further files, by name.
        photos: Photos that are linked from the cells of its tables, in HTML.
        terminal: The tables that a command prints for a single run.
    """

    results: pd.DataFrame
    markdown: str
    files: Mapping[str, str] = field(default_factory=dict)
    photos: PhotoSheet | None = None
    terminal: str = ""


def check_out(out: Path) -> None:
    """Checks that a report in `out` would not overwrite a run or a file.

    Raises:
        UsageError: `out` is a run, or a file.
    """
    if out.is_file():
        raise UsageError(f"`--out {out}` is a file.", "", "Name a folder.")
    if has_record(out):
        raise UsageError(
            f"`--out {out}` is a run.",
            "This would overwrite the report of the run.",
            "Name another folder.",
        )


def write_page(page: Page, folder: Path, photos: int | None = None) -> Path:
    """Writes the files of `page` to `folder`; returns the path of report.md.

    Args:
        page: The report.
        folder: Output folder, created if it does not exist.
        photos: Largest number of photos per cell in HTML; None for six.
    """
    sheet = page.photos
    if sheet is not None and photos is not None:
        sheet = replace(sheet, most=photos)
    earlier, files = _files_of_report(folder), _files_of_page(page, folder)
    write_result_files(folder, page.results)
    for name, content in page.files.items():
        write_text(folder / name, content)
    write_text(folder / "report.html", printable(to_html(page.markdown, folder, sheet, files)))
    write_text(folder / "report.md", page.markdown)
    for name in set(earlier).difference(files):
        (folder / unquote(name)).unlink(missing_ok=True)
    for place in (folder, folder / "figures"):
        remove_leftovers(place.glob(TEMPORARY_FILES))
    return folder / "report.md"


# Files of an earlier report that the new one does not have, such as a figure of a transform that is
# not there any more, must not remain beside it; files of the user must. `report.html` lists the
# files of its report, quoted as in links.

_PICTURE = re.compile(r"!\[.*\]\(((?:figures|panels)/[^/)\s]+)\)")
_LISTED = re.compile(r'<meta name="files" content="([^"]*)">')
_REMOVABLE = re.compile(
    r"(?:figures|panels)/[^/\\]+\.(?:png|pdf)|classes\.csv|verdicts\.csv|statistics\.json"
)
"""Files of reports; nothing else is removed, whatever a damaged page lists."""


def _files_of_page(page: Page, folder: Path) -> list[str]:
    """The files of `page` in `folder` besides those that every report has, sorted."""
    pictures = _PICTURE.findall(page.markdown)
    pairs = [(folder / unquote(link), f"{link.removesuffix('.png')}.pdf") for link in pictures]
    # A PDF of a figure is written after it; an older one is not of this report.
    documents = [
        name
        for picture, name in pairs
        if (document := picture.with_suffix(".pdf")).is_file()
        and document.stat().st_mtime_ns >= picture.stat().st_mtime_ns
    ]
    return sorted({*map(quote, page.files), *pictures, *documents})


def _files_of_report(folder: Path) -> list[str]:
    """The files that the report in `folder` lists; empty without a report, or if it lists none."""
    try:
        page = (folder / "report.html").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    listed = _LISTED.search(page)
    names = unescape(listed[1]).split() if listed is not None else []
    return [name for name in names if _REMOVABLE.fullmatch(unquote(name))]


def write_result_files(run: Path, table: pd.DataFrame) -> None:
    """Writes `results.csv` and `results.json` atomically; equal tables give equal bytes.

    Args:
        run: Folder of the run.
        table: `cell_table.table` of the run; a missing number is empty in CSV and null in JSON.
    """
    write_text(run / "results.csv", to_csv(table))
    write_text(run / "results.json", to_json(table))


def typed_table(
    rows: Sequence[Mapping[str, object]],
    columns: Sequence[str],
    *,
    words: Sequence[str],
    counts: Sequence[str],
) -> pd.DataFrame:
    """`rows` as a table of numbers but for `words`; `counts` are integers. Unknown is missing."""
    table = pd.DataFrame(rows, columns=list(columns))
    kinds = {name: "Int64" if name in counts else "Float64" for name in columns}
    return table.astype({name: kind for name, kind in kinds.items() if name not in words})


def json_records(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """The rows of `table` for JSON: missing values are None."""
    return table.astype(object).where(table.notna(), None).to_dict(orient="records")


def to_json(table: pd.DataFrame) -> str:
    """`table` as a JSON array with one record per row; shares are fractions in [0, 1].

    Raises:
        ValueError: A number is infinite, which JSON cannot represent.
    """
    return json.dumps(json_records(table), indent=1, allow_nan=False) + "\n"


# For a terminal.


def grid(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """`rows` under `header`; the first column is aligned left, the others right."""
    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, headers=header, disable_numparse=True, colalign=align)


def in_ascii(table: str) -> str:
    """`table` in ASCII, for any terminal."""
    return table.replace(EN_DASH, "-")
