"""The report of a training."""

from __future__ import annotations

from pathlib import Path

from robustcli.reports.pages.page import Page, page_of
from robustcli.reports.sections.cases import cases
from robustcli.reports.sections.training_classes import class_opening, class_scores, class_title
from robustcli.reports.sections.training_course import course, data
from robustcli.reports.sections.training_masks import held_out, paper_protocol
from robustcli.reports.sections.training_opening import training_opening, training_title
from robustcli.reports.sections.training_settings import training_settings
from robustcli.reports.sections.zoo_table import zoo_table
from robustcli.reports.training import Training, read_training
from robustcli.reports.training_gallery import TrainingGallery, draw_training_gallery
from robustcli.reports.training_results import class_results, training_results


def training(run: Path) -> Page:
    """The page of the training in `run`; its figures are drawn.

    Raises:
        UsageError: There is no readable training.
    """
    found = read_training(run)
    gallery = draw_training_gallery(found)
    if found.record.task == "cls":
        return _of_classes(found, gallery)
    return page_of(
        training_results([found]),
        training_title(found),
        [
            *training_opening(found),
            *held_out(found, gallery.strips),
            *paper_protocol(found),
            *cases(gallery.cases),
            *course(found, gallery.curves),
            *zoo_table([found], gallery.scatter),
            *data(found),
            *training_settings(found),
        ],
    )


def _of_classes(found: Training, gallery: TrainingGallery) -> Page:
    return page_of(
        class_results(found),
        class_title(found),
        [
            *class_opening(found),
            *class_scores(found),
            *course(found, gallery.curves),
            *data(found),
            *training_settings(found),
        ],
    )
