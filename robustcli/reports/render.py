"""Renders a report from the files of a run, without torch, images or network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import pandas as pd

from robustcli.core.io import to_csv
from robustcli.evaluation.cell_table import table
from robustcli.reports.evaluation_page import evaluation_report
from robustcli.reports.explanation_findings import explanation_results, read_explanation
from robustcli.reports.explanation_page import explanation_report
from robustcli.reports.finetuning_findings import read_finetuning
from robustcli.reports.finetuning_page import finetuning_report, finetuning_results
from robustcli.reports.latex import (
    evaluation_tables,
    explanation_tables,
    finetuning_tables,
    seeds_tables,
    training_tables,
    zoo_tables,
)
from robustcli.reports.pages import Page, check_out, run_kind, to_json, write_page
from robustcli.reports.seeds_findings import read_seeds
from robustcli.reports.seeds_page import seeds_report, seeds_results
from robustcli.reports.training_findings import read_training
from robustcli.reports.training_page import training_report, training_results
from robustcli.reports.zoo_page import read_zoo, zoo_report


class _Report(NamedTuple):
    """The report of a kind of run: its page, its results as a table, and its LaTeX tables."""

    page: Callable[[Path, Path | None], Page]
    results: Callable[[Path], pd.DataFrame]
    tables: Callable[[Path], str]


_EVALUATION = _Report(evaluation_report, table, evaluation_tables)
_REPORTS = {
    "cls": _EVALUATION,
    "seg": _EVALUATION,
    "train": _Report(
        training_report, lambda run: training_results([read_training(run)]), training_tables
    ),
    "finetune": _Report(
        finetuning_report, lambda run: finetuning_results(read_finetuning(run)), finetuning_tables
    ),
    "explanation": _Report(
        explanation_report, lambda run: explanation_results(read_explanation(run)),
        explanation_tables,
    ),
    "seeds": _Report(
        lambda run, _: seeds_report(run), lambda run: seeds_results(read_seeds(run)), seeds_tables
    ),
}  # fmt: skip
Format = Literal["latex", "csv", "json", "markdown", "html"]
REPORT_FORMATS: tuple[Format, ...] = get_args(Format)
_SUFFIXES = {"markdown": ".md", "html": ".html"}


def render(run: Path, photos: int | None = None, out: Path | None = None) -> Path:
    """Writes results.csv, results.json, figures/, report.html and report.md of a run.

    Rendering the same run again gives the same files.

    Args:
        run: Folder of any kind of run (`pages.KINDS`), complete or not.
        photos: Largest number of photos per cell of an evaluation, in HTML; None for six.
        out: Output folder, for a run that must not be changed; None for the folder of the run. Not
            for several seeds, whose report links to those of the seeds.

    Returns:
        Path of report.md.

    Raises:
        UsageError: The run does not exist or cannot be read; `out` is a run or a file.
        RunError: A file could not be written.
    """
    return write_page(report_page(run, out), out or run, photos)


def report_page(run: Path, out: Path | None = None) -> Page:
    """The report of `run`, to be written by `pages.write_page`; draws its figures.

    Raises:
        UsageError: The run does not exist or cannot be read; `out` is a run or a file.
    """
    if out is not None:
        check_out(out)
    return _REPORTS[run_kind(run)].page(run, out)


def render_zoo(runs: Sequence[Path], out: Path) -> Path:
    """Writes one report on several trainings to `out`, with the files of `render`.

    Args:
        runs: Folders of trainings, complete or not; at least one. Repeated ones are included once.
        out: Output folder, created if it does not exist.

    Raises:
        UsageError: One of the trainings does not exist or cannot be read.
        RunError: A file could not be written.
    """
    return write_page(zoo_report(runs, out), out)


def document(run: Path, form: Format, photos: int | None = None, out: Path | None = None) -> str:
    """The report of `run` as one document; for `csv`, `json` and `latex` no file is written.

    The Markdown links to figures, so Markdown and HTML are rendered into `out`, by default `run`.

    Raises:
        UsageError: The run does not exist or cannot be read.
    """
    if form in ("markdown", "html"):
        return render(run, photos, out).with_suffix(_SUFFIXES[form]).read_text(encoding="utf-8")
    report = _REPORTS[run_kind(run)]
    return report.tables(run) if form == "latex" else _numbers(report.results(run), form)


def zoo_document(runs: Sequence[Path], out: Path, form: Format) -> str:
    """The report on several trainings as one document; see `document` and `render_zoo`."""
    if form in ("markdown", "html"):
        return render_zoo(runs, out).with_suffix(_SUFFIXES[form]).read_text(encoding="utf-8")
    trainings = read_zoo(runs)
    return zoo_tables(trainings) if form == "latex" else _numbers(training_results(trainings), form)


def _numbers(results: pd.DataFrame, form: Format) -> str:
    return to_csv(results) if form == "csv" else to_json(results)
