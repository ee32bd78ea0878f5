"""The report of a fine-tuning."""

from __future__ import annotations

from pathlib import Path

from robustcli.reports.finetuning import read_finetuning
from robustcli.reports.finetuning_gallery import draw_finetuning_gallery
from robustcli.reports.finetuning_results import finetuning_results
from robustcli.reports.pages.page import Page, page_of
from robustcli.reports.sections.cases import cases
from robustcli.reports.sections.finetune_gradients import every_tensor, gradients
from robustcli.reports.sections.finetune_modes import modes
from robustcli.reports.sections.finetune_opening import finetune_opening, finetune_title
from robustcli.reports.sections.finetune_settings import finetune_settings
from robustcli.reports.sections.finetune_sweep import sweep


def finetune(run: Path) -> Page:
    """The page of the fine-tuning in `run`; its figures are drawn.

    Raises:
        UsageError: There is no readable fine-tuning.
    """
    found = read_finetuning(run)
    gallery = draw_finetuning_gallery(found)
    return page_of(
        finetuning_results(found),
        finetune_title(found),
        [
            *finetune_opening(found),
            *modes(found, gallery),
            *gradients(found, gallery.gradients),
            *sweep(found, gallery.tradeoff),
            *(cases(gallery.cases) if found.record.modes and found.scoring.per_group else ()),
            *every_tensor(found),
            *finetune_settings(found),
        ],
    )
