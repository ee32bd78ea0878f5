"""A report from the files of a run: no torch, no images, no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from robustcli.reports.evaluation_page import evaluation_report
from robustcli.reports.finetuning_page import finetuning_report
from robustcli.reports.pages import Page, kind_of, write_page
from robustcli.reports.training_page import training_report, zoo_report

_KINDS: dict[str, Callable[[Path], Page]] = {
    "cls": evaluation_report,
    "seg": evaluation_report,
    "train": training_report,
    "finetune": finetuning_report,
}


def render(run: Path) -> Path:
    """Writes results.csv, results.json, figures/, report.html and report.md; the last one's path.

    Rendering the same run again gives the same files.

    Args:
        run: Directory of an evaluation, of a training or of a fine-tuning, finished or not.

    Raises:
        UsageError: There is no readable run.
        RunError: A file could not be written.
    """
    return write_page(_KINDS[kind_of(run)](run), run)


def render_zoo(runs: Sequence[Path], out: Path) -> Path:
    """Writes one report over several trainings to `out`, with the files of `render`.

    Args:
        runs: Directories of trainings, finished or not; at least one. A repeated one counts once.
        out: Made where it does not exist.

    Raises:
        UsageError: There is no readable training in one of them.
        RunError: A file could not be written.
    """
    return write_page(zoo_report(runs, out), out)
