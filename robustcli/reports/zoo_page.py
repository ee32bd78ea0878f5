"""The report over several trainings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.reports.markdown import from_template
from robustcli.reports.pages import Page
from robustcli.reports.training_findings import Training, read_training
from robustcli.reports.training_gallery import NO_PICTURES, TrainingGallery, draw_zoo_gallery
from robustcli.reports.training_results import training_results
from robustcli.reports.zoo_rows import Zoo


def zoo_report(runs: Sequence[Path], out: Path) -> Page:
    """The page of the trainings in `runs`; its figures are drawn into `out`/figures.

    Raises:
        UsageError: There is no readable training in one of them, or `out` is one of them.
    """
    if out.resolve() in {run.resolve() for run in runs}:
        raise UsageError(
            f"`--out {out}` is one of the trainings to compare.",
            "The comparison would overwrite that training's own report.",
            "Name another folder.",
        )
    trainings = read_zoo(runs)
    return Page(training_results(trainings), zoo_text(trainings, draw_zoo_gallery(trainings, out)))


def read_zoo(runs: Sequence[Path]) -> list[Training]:
    """The trainings in `runs`, each once.

    Raises:
        UsageError: There is no readable training of a segmenter in one of them.
    """
    trainings = [read_training(run) for run in {run.resolve(): run for run in runs}.values()]
    other = next((one for one in trainings if one.record.task != "seg"), None)
    if other is not None:
        raise UsageError(
            f"`{other.run}` is the training of a classifier.",
            "Several trainings are compared by dice, which it has none of.",
            "Render it alone: `robust report RUN`.",
        )
    return trainings


def zoo_text(trainings: Sequence[Training], gallery: TrainingGallery = NO_PICTURES) -> str:
    """The Markdown of the page, with the pictures of `gallery`."""
    return from_template("zoo", zoo=Zoo(trainings), gallery=gallery)
