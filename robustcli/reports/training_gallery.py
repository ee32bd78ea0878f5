"""The pictures of a training's report, drawn into `figures/` beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcli.metrics.mask_scores import dice
from robustcli.reports.figures.training_figures import (
    Course,
    Level,
    Point,
    Strip,
    draw_course_grid,
    draw_curves,
    draw_scatter,
    draw_strips,
)
from robustcli.reports.gallery import case_figures
from robustcli.reports.markdown import Picture
from robustcli.reports.numbers import fraction, is_missing
from robustcli.reports.training_findings import HeldOutResults, Training
from robustcli.reports.zoo_rows import Baseline, ZooRow, baselines, label, zoo_rows

_COUNTS = ["tp", "fp", "fn"]


@dataclass(frozen=True)
class TrainingGallery:
    """The figures of each kind that there are; an empty tuple where there is nothing to show."""

    scatter: tuple[Picture, ...] = ()
    curves: tuple[Picture, ...] = ()
    strips: tuple[Picture, ...] = ()
    cases: tuple[Picture, ...] = ()


NO_PICTURES = TrainingGallery()


def draw_training_gallery(training: Training) -> TrainingGallery:
    """Draws every picture that one training has data for."""
    if training.record.task == "cls":
        return TrainingGallery(curves=_curves(training))
    return TrainingGallery(
        _scatter(training.run, [training]), _curves(training), _strips(training), _cases(training)
    )


def draw_zoo_gallery(trainings: Sequence[Training], out: Path) -> TrainingGallery:
    """Draws every picture that several trainings have data for, into `out`/figures."""
    return TrainingGallery(_scatter(out, trainings), _grids(trainings, out))


def _scatter(out: Path, trainings: Sequence[Training]) -> tuple[Picture, ...]:
    rows = zoo_rows(trainings)
    points = [point for row in rows for point in _points(row)]
    path = "figures/dice_over_parameters.png"
    draw_scatter(points, [_level(b) for b in baselines(trainings)], out / path)
    caption = (
        "Dice against the number of parameters. Circles: as published (LGG, protocol paper); "
        "diamonds: measured here under the run's own protocol, with 95 % intervals, joined to "
        "what was published of the same network. Dashed: Otsu's threshold on the images held out "
        "here; it has no parameters."
    )
    return (Picture(path, caption),)


def _points(row: ZooRow) -> list[Point]:
    points = []
    if row.printed is not None:
        name = row.printed.model
        points.append(Point(name, name, row.printed.parameters, row.printed.dice))
    if row.training is not None and row.score is not None and row.score.dice is not None:
        ends = row.score.dice_low, row.score.dice_high
        network = row.training.record.model
        points.append(Point(row.label, network, row.parameters, row.score.dice, True, *ends))
    return list(dict.fromkeys(points))


def _level(baseline: Baseline) -> Level:
    value = float(baseline.numbers["dice"])
    place = f" ({baseline.images})" if baseline.images else ""
    return Level(f"Otsu{place}: {fraction(value)}", value)


def _curves(training: Training) -> tuple[Picture, ...]:
    if training.metrics.empty:
        return ()
    path, masks = "figures/curves.png", training.record.task == "seg"
    course = _course(training, training.record.model)
    draw_curves(course, training.run / path, "dice" if masks else "top1")
    score = "dice and IoU" if masks else "top-1"
    caption = f"Losses (left) and {score} (right) of {validated(training)}, epoch by epoch."
    return (Picture(path, caption),)


def validated(training: Training) -> str:
    """What the validation's score is of, and how it is pooled."""
    if not training.scoring.per_group:
        return "the validation images"
    if training.record.recipe.patches is not None:
        return "random validation patches (the pixels of all of an epoch's pooled: pseudo dice)"
    return f"the validation images (pooled within each {training.record.grouping}, then averaged)"


def _course(training: Training, name: str) -> Course:
    return Course(name, training.metrics, training.record.chosen_epoch)


def _grids(trainings: Sequence[Training], out: Path) -> tuple[Picture, ...]:
    begun = [training for training in trainings if len(training.metrics)]
    if not begun:
        return ()
    courses = [_course(training, label(training, trainings)) for training in begun]
    draw_course_grid(courses, "dice", out / "figures/dice_curves.png")
    draw_course_grid(courses, "loss", out / "figures/loss_curves.png")
    return (
        Picture("figures/dice_curves.png", "Dice and IoU of the validation images, by epoch."),
        Picture("figures/loss_curves.png", "Losses by epoch; those of different kinds (see the "
               "recipes) cannot be compared."),
    )  # fmt: skip


def _strips(training: Training) -> tuple[Picture, ...]:
    named = [(training.record.model, training.test), ("otsu", training.baseline)]
    strips = [strip(name, held) for name, held in named if held is not None]
    if not strips:
        return ()
    path, grouping = "figures/groups.png", training.record.grouping
    draw_strips(strips, grouping, training.run / path)
    return (Picture(path, f"Dice of every held-out {grouping}, the pixels of its images pooled."),)


def strip(name: str, held: HeldOutResults) -> Strip:
    """The dice of the groups of held-out images of one model, called `name`."""
    pooled = held.rows.groupby("group", sort=True)[_COUNTS].sum()
    low, high = (
        None if is_missing(held.numbers[end]) else float(held.numbers[end])
        for end in ("dice_low", "dice_high")
    )
    return Strip(name, dice(pooled), float(held.numbers["dice"]), low, high)


def _cases(training: Training) -> tuple[Picture, ...]:
    if training.test is None:
        return ()
    findings = training.test.findings
    return case_figures(findings, findings.models[0], training.run, training.record.model)
