"""The report over several trainings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.reports.pages.page import Page, page_of
from robustcli.reports.sections.zoo_curves import zoo_curves
from robustcli.reports.sections.zoo_opening import zoo_opening, zoo_recipes, zoo_title
from robustcli.reports.sections.zoo_table import zoo_table
from robustcli.reports.training import read_training
from robustcli.reports.training_gallery import draw_zoo_gallery
from robustcli.reports.training_results import training_results


def zoo(runs: Sequence[Path], out: Path) -> Page:
    """The page of the trainings in `runs`; its figures are drawn into `out`/figures.

    Raises:
        UsageError: There is no readable training in one of them, or `out` is one of them.
    """
    different = {run.resolve(): run for run in runs}
    if out.resolve() in different:
        raise UsageError(
            f"`--out {out}` is one of the trainings to compare.",
            "The comparison would overwrite that training's own report.",
            "Name another folder.",
        )
    trainings = [read_training(run) for run in different.values()]
    other = next((one for one in trainings if one.record.task != "seg"), None)
    if other is not None:
        raise UsageError(
            f"`{other.run}` is the training of a classifier.",
            "Several trainings are compared by dice, which it has none of.",
            "Render it alone: `robust report RUN`.",
        )
    gallery = draw_zoo_gallery(trainings, out)
    return page_of(
        training_results(trainings),
        zoo_title(trainings),
        [
            *zoo_opening(trainings),
            *zoo_table(trainings, gallery.scatter),
            *zoo_curves(gallery.curves),
            *zoo_recipes(trainings),
        ],
    )
