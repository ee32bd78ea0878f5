"""The report of a training."""

from __future__ import annotations

from pathlib import Path

from robustcli.reports.markdown import from_template
from robustcli.reports.numbers import fraction
from robustcli.reports.pages import Page
from robustcli.reports.training_findings import Training, read_training
from robustcli.reports.training_gallery import NO_PICTURES, TrainingGallery, draw_training_gallery
from robustcli.reports.training_results import (
    class_results,
    gain,
    headline,
    pooled,
    training_results,
)
from robustcli.reports.zoo_rows import Zoo


def training(run: Path) -> Page:
    """The page of the training in `run`; its figures are drawn.

    Raises:
        UsageError: There is no readable training.
    """
    found = read_training(run)
    results = class_results(found) if found.record.task == "cls" else training_results([found])
    return Page(results, training_text(found, draw_training_gallery(found)))


def training_text(found: Training, gallery: TrainingGallery = NO_PICTURES) -> str:
    """The Markdown of the page, with the pictures of `gallery`."""
    return from_template(
        "training",
        training=found,
        gallery=gallery,
        headline=_headline(found),
        floor=found.floor,
        gain=gain(found) if found.record.task == "seg" else None,
        paper=pooled(found),
        zoo=Zoo([found]),
    )


def _headline(found: Training) -> str:
    """The score that the title names; empty until it is measured."""
    if found.record.task == "cls":
        return "" if found.test is None else found.scoring.shown(found.test.numbers)
    score = headline(found)
    return "" if score is None else f"{fraction(score.dice)}{score.dice_range}"
