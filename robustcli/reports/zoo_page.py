"""The report on several trainings: one page, its figures, files of numbers, printed table."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.core.io import to_csv
from robustcli.core.rundir import has_record
from robustcli.evaluation.record import read_record
from robustcli.reports.figures.canvas import Estimate
from robustcli.reports.figures.training_figures import (
    CostPanel,
    CostPoint,
    EpochPanel,
    draw_by_epoch,
    draw_costs,
    draw_course_grid,
)
from robustcli.reports.markdown import Picture, from_template
from robustcli.reports.numbers import duration
from robustcli.reports.pages import Page, check_out, grid, in_ascii, run_kind
from robustcli.reports.training_findings import TrainingFindings, read_training
from robustcli.reports.training_page import (
    course_of,
    draw_dice_over_parameters,
    training_results,
)
from robustcli.reports.zoo_findings import Zoo
from robustcli.training.record import read_seeds_record


@dataclass(frozen=True)
class ZooGallery:
    """The figures of several trainings; empty tuples for kinds without figures.

    Args:
        published: Dice against parameters, with published results; segmenters only.
        curves: Curves by epoch, all trainings in one figure.
        grids: Curves by epoch, a panel for each training; segmenters only.
        costs: Scores against costs.
    """

    published: tuple[Picture, ...] = ()
    curves: tuple[Picture, ...] = ()
    grids: tuple[Picture, ...] = ()
    costs: tuple[Picture, ...] = ()


def zoo_report(runs: Sequence[Path], out: Path) -> Page:
    """The page of the trainings in `runs`; draws its figures into `out`/figures.

    Raises:
        UsageError: One of the trainings does not exist or cannot be read, they are of different
            tasks, or `out` is a run or a file.
    """
    if out.resolve() in {run.resolve() for run in runs}:
        raise UsageError(
            f"`--out {out}` is one of the trainings to compare.",
            "The comparison would overwrite the report of that training.",
            "Name another folder.",
        )
    check_out(out)
    zoo = Zoo(read_zoo(runs))
    verdicts = zoo.comparison.verdicts()
    return Page(
        training_results(zoo.trainings),
        zoo_text(zoo, draw_zoo_gallery(zoo, out)),
        {} if verdicts is None else {"verdicts.csv": to_csv(verdicts)},
        terminal=zoo_table(zoo),
    )


def trainings_in(run: Path) -> list[Path]:
    """The folders of the trainings in `run`: itself, or those of its seeds that have started."""
    if run_kind(run) != "seeds":
        return [run]
    return [out for out in read_seeds_record(run).folders(run).values() if has_record(out)]


def read_zoo(runs: Sequence[Path]) -> list[TrainingFindings]:
    """The trainings in `runs`, without duplicates.

    Raises:
        UsageError: One of the trainings does not exist or cannot be read, is no training, or not
            all are of one task.
    """
    run_dirs = [seed for run in runs for seed in trainings_in(run)]
    _check_kinds(run_dirs)
    if not run_dirs:
        raise UsageError(
            f"No training has begun in {' and '.join(f'`{run}`' for run in runs)}.",
            "",
            "Repeat the command that created the folder.",
        )
    trainings = [read_training(run) for run in {run.resolve(): run for run in run_dirs}.values()]
    first = trainings[0]
    mismatch = next((t for t in trainings if t.record.task != first.record.task), None)
    if mismatch is not None:
        kinds = {"cls": "a classifier", "seg": "a segmenter"}
        raise UsageError(
            f"`{first.run}` is the training of {kinds[first.record.task]}, and `{mismatch.run}` is "
            f"the training of {kinds[mismatch.record.task]}.",
            "Top-1 and dice cannot be compared in one table.",
            "Write two reports, one over the trainings of each task.",
        )
    return trainings


_OTHER_RUNS = {"finetune": "a fine-tuning", "explanation": "an explanation"}


def _check_kinds(run_dirs: Sequence[Path]) -> None:
    """Raises UsageError for the first run that is not a training."""
    for run in run_dirs:
        kind = _OTHER_RUNS.get(run_kind(run), "an evaluation" if _is_evaluation(run) else None)
        if kind is not None:
            raise UsageError(
                f"`{run}` is {kind}, but `--out` is the folder of a report over trainings.",
                "The reports of other runs are in the folders of the runs.",
                "Omit `--out`, or compare models with `robust compare RUN RUN --out FOLDER`.",
            )


def _is_evaluation(run: Path) -> bool:
    """Whether the run is an evaluation with a readable record."""
    try:
        read_record(run)
    except UsageError:
        return False
    return True


def default_folder(runs: Sequence[Path]) -> Path:
    """Default folder of the report on `runs`; the same for the same runs."""
    names = "\n".join(sorted({str(run.resolve()) for run in runs}))
    return Path("runs") / f"report-{hashlib.sha256(names.encode()).hexdigest()[:8]}"


def zoo_text(zoo: Zoo, gallery: ZooGallery | None = None) -> str:
    """The Markdown of the page, with the figures of `gallery`."""
    return from_template("zoo", zoo=zoo, gallery=gallery or ZooGallery())


# The figures.

MIXED = " Not all scores are for the same held-out images."


def draw_zoo_gallery(zoo: Zoo, out: Path) -> ZooGallery:
    """Draws all figures for which several trainings have data, into `out`/figures."""
    segmenters = zoo.trainings[0].scoring.per_group
    return ZooGallery(
        draw_dice_over_parameters(out, zoo) if segmenters else (),
        _curves(zoo, out),
        _grids(zoo, out) if segmenters else (),
        _costs(zoo, out, "" if len(zoo.comparison.sets) < 2 else MIXED),
    )


_SCORE_PANELS = {
    "cls": (
        EpochPanel("val_f1", "macro F1 (0 to 1)", "macro F1"),
        EpochPanel("val_top1", "top-1 (0 to 1)", "top-1"),
    ),
    "seg": (
        EpochPanel("val_dice", "dice (0 to 1)", "dice"),
        EpochPanel("val_iou", "IoU (0 to 1)", "IoU"),
    ),
}
_LOSS_PANELS = (
    EpochPanel("train_loss", "loss", "training"),
    EpochPanel("val_loss", "loss", "validation"),
)
_TIME_PANELS = (EpochPanel("seconds", "seconds of an epoch with its validation", from_zero=True),)
_LOSSES = "Losses by epoch; different losses (see the recipes) cannot be compared."


def _curves(zoo: Zoo, out: Path) -> tuple[Picture, ...]:
    """The score, the losses and the time by epoch, each in one figure of all trainings."""
    trainings = [t for t in zoo.trainings if t.epochs]
    if not trainings:
        return ()
    courses = [(zoo.label(t), t.metrics) for t in trainings]
    scores = _SCORE_PANELS[trainings[0].record.task]
    titles = " and ".join(panel.title for panel in scores)
    lacking = [zoo.label(t) for t in trainings if t.metrics[scores[0].column].isna().all()]
    missing = f" Not recorded for {', '.join(lacking)}." if lacking else ""
    figures = {
        "score_by_epoch": (
            scores,
            f"{titles[0].upper()}{titles[1:]} of the validation images, by epoch.{missing}",
        ),
        "loss_by_epoch": (_LOSS_PANELS, _LOSSES),
        "time_by_epoch": (_TIME_PANELS, "Time of each epoch with its validation."),
    }
    pictures = []
    for name, (panels, caption) in figures.items():
        recorded = [p for p in panels if any(m[p.column].notna().any() for _, m in courses)]
        picture = Picture(f"figures/{name}.png", caption)
        draw_by_epoch(courses, recorded, out / picture.path)
        pictures.append(picture)
    return tuple(pictures)


def _grids(zoo: Zoo, out: Path) -> tuple[Picture, ...]:
    courses = [course_of(t, zoo.label(t)) for t in zoo.trainings if len(t.metrics)]
    if not courses:
        return ()
    scores = Picture("figures/dice_curves.png", "Dice and IoU of the validation images, by epoch.")
    losses = Picture("figures/loss_curves.png", _LOSSES)
    draw_course_grid(courses, "dice", out / scores.path)
    draw_course_grid(courses, "loss", out / losses.path)
    return scores, losses


_PANELS = (
    CostPanel("parameters", "parameters (logarithmic)"),
    CostPanel("multiply-adds", "multiply-adds for one image (logarithmic)"),
    CostPanel("epoch", "median epoch with its validation (logarithmic)", seconds=True),
    CostPanel("training", "all epochs (logarithmic)", seconds=True),
)


def _costs(zoo: Zoo, out: Path, caution: str) -> tuple[Picture, ...]:
    points = [_cost_point(t, zoo.label(t)) for t in zoo.trainings if t.test is not None]
    panels = [panel for panel in _PANELS if any(p.costs[panel.cost] for p in points)]
    if not panels:
        return ()
    measure, path = zoo.trainings[0].scoring.measure, "figures/score_over_costs.png"
    draw_costs(points, panels, measure.axis, measure.scale, out / path)
    lacking = {panel.cost: [p.name for p in points if not p.costs[panel.cost]] for panel in _PANELS}
    missing = "".join(
        f" {cost[0].upper()}{cost[1:]} not recorded: {', '.join(names)}."
        for cost, names in lacking.items()
        if names
    )
    caption = (
        f"{measure.title} on the held-out images, with {measure.interval}, against "
        f"{', '.join(panel.cost for panel in panels[:-1])} and {panels[-1].cost} time. "
        f"Further up and to the left is better: a higher score at a lower cost.{caution}{missing}"
    )
    return (Picture(path, caption),)


def _cost_point(training: TrainingFindings, label: str) -> CostPoint:
    assert training.test is not None
    epoch = training.epoch_seconds
    costs = {
        "parameters": training.record.parameters,
        "multiply-adds": training.record.multiply_adds,
        "epoch": None if epoch is None else epoch.median,
        "training": training.seconds,
    }
    return CostPoint(
        label,
        Estimate.of(training.test.numbers, training.scoring.measure.column),
        {name: float(cost) if cost else None for name, cost in costs.items()},
    )


def _score_cell(training: TrainingFindings) -> str:
    if training.test is None:
        return "not measured"
    score = training.scoring.shown(training.test.numbers)
    return f"{score}, {training.evaluated_so_far}" if training.evaluated_so_far else score


def zoo_table(zoo: Zoo) -> str:
    """A table with a row per training, followed by the conclusions."""
    comparison, scoring = zoo.comparison, zoo.trainings[0].scoring
    header = ("training", "parameters", f"{scoring.measure.name} (95 % interval)", "epoch", "all")
    rows: list[tuple[str, ...]] = [
        (
            zoo.label(training),
            f"{training.record.parameters:,}",
            _score_cell(training),
            duration(None if (spread := training.epoch_seconds) is None else spread.median),
            duration(training.seconds),
        )
        for training in zoo.trainings
    ]
    sentences = [
        f"Not compared with the others: {', '.join(s.labels)}." for s in comparison.sets[1:]
    ]
    return in_ascii(
        "\n\n".join([grid(header, rows), "\n".join([*comparison.sentences, *sentences])])
    )
