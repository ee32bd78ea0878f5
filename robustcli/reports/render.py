"""A report from the files of a run: no torch, no images, no network."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from robustcli.core.rundir import RECORD_FILE
from robustcli.reports.evaluation_page import evaluation_report
from robustcli.reports.finetuning_page import finetuning_report
from robustcli.reports.pages import Page, write_page
from robustcli.reports.training_page import training_report, zoo_report

_KINDS: dict[str, Callable[[Path], Page]] = {
    "cls": evaluation_report,
    "seg": evaluation_report,
    "train": training_report,
    "finetune": finetuning_report,
}
_OWN = ("train", "finetune")  # kinds that `run.json` names; the others are tasks of evaluations


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


def kind_of(run: Path) -> str:
    """`train`, `finetune`, or the task of an evaluation; `cls` where that cannot be read."""
    try:
        head = json.loads((run / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "cls"  # reading it as an evaluation tells the user what is wrong
    if not isinstance(head, dict):
        return "cls"
    kind = head["kind"] if head.get("kind") in _OWN else head.get("task")
    return kind if kind in _KINDS else "cls"
