"""The report of a training."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

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


def training_report(run: Path) -> Page:
    """The page of the training in `run`; its figures are drawn.

    Raises:
        UsageError: There is no readable training.
    """
    training = read_training(run)
    text = training_text(training, draw_training_gallery(training))
    return Page(results_of_training(training), text)


def results_of_training(training: Training) -> pd.DataFrame:
    """The numbers of one training: a row with the columns of its task."""
    return (
        class_results(training) if training.record.task == "cls" else training_results([training])
    )


def training_text(training: Training, gallery: TrainingGallery = NO_PICTURES) -> str:
    """The Markdown of the page, with the pictures of `gallery`."""
    return from_template(
        "training",
        training=training,
        gallery=gallery,
        headline=_headline(training),
        baseline=training.baseline_numbers,
        gain=gain(training) if training.record.task == "seg" else None,
        paper=pooled(training),
        zoo=Zoo([training]),
    )


def _headline(training: Training) -> str:
    """The score that the title names; empty until it is measured."""
    if training.record.task == "cls":
        return "" if training.test is None else training.scoring.shown(training.test.numbers)
    score = headline(training)
    return "" if score is None else f"{fraction(score.dice)}{score.dice_range}"
