"""The reports of one training and of several: results, pictures, pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from robustcli.core.errors import UsageError
from robustcli.metrics.mask_scores import group_dice
from robustcli.reports.console import training_table
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
from robustcli.reports.gallery import case_figures, class_pictures
from robustcli.reports.markdown import Picture, from_template
from robustcli.reports.numbers import fraction, is_missing
from robustcli.reports.pages import Page, to_csv
from robustcli.reports.training_findings import (
    HeldOutResults,
    TrainingFindings,
    gain,
    headline,
    pooled,
    read_training,
)
from robustcli.reports.zoo_rows import Baseline, Zoo, ZooRow, printed_of

_MASKS = (
    *("n", "groups", "dice", "dice_low", "dice_high", "iou", "iou_low", "iou_high"),
    *("dice_image", "dice_image_low", "dice_image_high", "dice_foreground", "precision", "recall"),
    *("hd95", "boundary_dice"),
    *("relaxed_precision", "relaxed_precision_low", "relaxed_precision_high"),
    *("relaxed_recall", "relaxed_recall_low", "relaxed_recall_high"),
)
_PAPER = ("dice", "dice_low", "dice_high", "iou", "iou_low", "iou_high")
_COUNTS = (
    *("n", "groups", "correct", "params", "epochs", "chosen_epoch"),
    *("peak_memory_bytes", "weights_bytes"),
)
COLUMNS = (
    *("run", "model", "protocol", "dataset", "status"),
    *_MASKS,
    *(f"paper_{name}" for name in _PAPER),
    *("params", "epochs", "chosen_epoch", "seconds", "peak_memory_bytes", "energy_joules"),
    *("weights_bytes", "published_dice", "published_iou", "baseline_dice", "baseline_iou"),
)
_WORDS = COLUMNS[:5]
CLASS_COLUMNS = (
    *("run", "model", "dataset", "status", "n", "correct", "top1", "top1_low", "top1_high"),
    *("top5", "params", "epochs", "chosen_epoch", "seconds", "peak_memory_bytes"),
    *("energy_joules", "weights_bytes", "baseline_top1"),
)


def training_results(trainings: Sequence[TrainingFindings]) -> pd.DataFrame:
    """One row per training with COLUMNS; a number that is not known is missing.

    Shares are fractions in [0, 1]. `dice` and `iou` are pooled within groups (`protocol` patient),
    `paper_dice` and `paper_iou` over batches as the paper did.
    """
    return _table([_of_segmenter(training) for training in trainings], COLUMNS)


def class_results(training: TrainingFindings) -> pd.DataFrame:
    """One row of a classifier's training with CLASS_COLUMNS; what is not known is missing."""
    row, test, baseline = _of_any(training), training.test, training.baseline_numbers
    if test is not None:
        row |= {name: test.numbers[name] for name in training.scoring.columns}
    row["baseline_top1"] = None if baseline is None else baseline["top1"]
    return _table([row], CLASS_COLUMNS)


def _table(rows: list[dict[str, object]], columns: tuple[str, ...]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(columns))
    kinds = {name: "Int64" if name in _COUNTS else "Float64" for name in columns}
    return table.astype({name: kind for name, kind in kinds.items() if name not in _WORDS})


def _of_any(training: TrainingFindings) -> dict[str, object]:
    """What the results of segmenters and of classifiers have in common."""
    record = training.record
    return {
        "run": training.run.resolve().name,
        "model": record.model,
        "dataset": record.dataset.name,
        "status": record.status,
        "params": record.parameters,
        "epochs": training.epochs,
        "chosen_epoch": record.chosen_epoch,
        "seconds": training.seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "energy_joules": record.energy_joules,
        "weights_bytes": training.weights_bytes,
    }


def _of_segmenter(training: TrainingFindings) -> dict[str, object]:
    row, line = _of_any(training), printed_of(training.record)
    row["protocol"] = training.record.protocol
    if line is not None:
        row |= {"published_dice": line.dice, "published_iou": line.iou}
    if training.test is not None:
        row |= {name: training.test.numbers[name] for name in _MASKS}
    if training.baseline is not None:
        row |= {f"baseline_{name}": training.baseline.numbers[name] for name in ("dice", "iou")}
    paper = pooled(training)
    if paper is not None:
        row |= {f"paper_{name}": getattr(paper.score, name) for name in _PAPER}
    return row


@dataclass(frozen=True)
class TrainingGallery:
    """The figures of each kind that there are; an empty tuple where there is nothing to show."""

    scatter: tuple[Picture, ...] = ()
    curves: tuple[Picture, ...] = ()
    strips: tuple[Picture, ...] = ()
    cases: tuple[Picture, ...] = ()
    classes: tuple[Picture, ...] = ()


def draw_training_gallery(training: TrainingFindings) -> TrainingGallery:
    """Draws every picture that one training has data for."""
    if not training.scoring.per_group:
        return TrainingGallery(curves=_curves(training))
    return TrainingGallery(
        () if training.classes else _scatter(training.run, Zoo([training])),
        _curves(training),
        _strips(training),
        _cases(training),
        _classes(training),
    )


def draw_zoo_gallery(zoo: Zoo, out: Path) -> TrainingGallery:
    """Draws every picture that several trainings have data for, into `out`/figures."""
    return TrainingGallery(_scatter(out, zoo), _grids(zoo, out))


def _scatter(out: Path, zoo: Zoo) -> tuple[Picture, ...]:
    points = [point for row in zoo.rows for point in _points(row)]
    path = "figures/dice_over_parameters.png"
    draw_scatter(points, [_level(baseline) for baseline in zoo.baselines], out / path)
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


def _curves(training: TrainingFindings) -> tuple[Picture, ...]:
    if training.metrics.empty:
        return ()
    path, scoring = "figures/curves.png", training.scoring
    course = _course(training, training.record.model)
    draw_curves(course, training.run / path, scoring.panel)
    caption = (
        f"Losses (left) and {scoring.validated} (right) of {validated(training)}, epoch by epoch."
    )
    return (Picture(path, caption),)


def validated(training: TrainingFindings) -> str:
    """What the validation's score is of, and how it is pooled."""
    if not training.scoring.per_group:
        return "the validation images"
    if training.record.recipe.patches is not None:
        return "random validation patches (the pixels of all of an epoch's pooled: pseudo dice)"
    return f"the validation images (pooled within each {training.record.grouping}, then averaged)"


def _course(training: TrainingFindings, name: str) -> Course:
    return Course(name, training.metrics, training.record.chosen_epoch)


def _grids(zoo: Zoo, out: Path) -> tuple[Picture, ...]:
    courses = [_course(t, zoo.label(t)) for t in zoo.trainings if len(t.metrics)]
    if not courses:
        return ()
    draw_course_grid(courses, "dice", out / "figures/dice_curves.png")
    draw_course_grid(courses, "loss", out / "figures/loss_curves.png")
    return (
        Picture("figures/dice_curves.png", "Dice and IoU of the validation images, by epoch."),
        Picture("figures/loss_curves.png", "Losses by epoch; those of different kinds (see the "
               "recipes) cannot be compared."),
    )  # fmt: skip


def _strips(training: TrainingFindings) -> tuple[Picture, ...]:
    named = [(training.record.model, training.test), ("otsu", training.baseline)]
    strips = [strip(name, held) for name, held in named if held is not None]
    if not strips:
        return ()
    path, grouping = "figures/groups.png", training.record.grouping
    draw_strips(strips, grouping, training.run / path)
    return (Picture(path, f"Dice of every held-out {grouping}, the pixels of its images pooled."),)


def strip(name: str, held: HeldOutResults) -> Strip:
    """The dice of the groups of held-out images of one model, called `name`."""
    low, high = (
        None if is_missing(held.numbers[end]) else float(held.numbers[end])
        for end in ("dice_low", "dice_high")
    )
    return Strip(name, group_dice(held.rows), float(held.numbers["dice"]), low, high)


def _classes(training: TrainingFindings) -> tuple[Picture, ...]:
    if training.test is None or not training.classes:
        return ()
    model = training.test.findings.models[0].name
    return class_pictures(training.classes, model, training.run, training.record.model)


def _cases(training: TrainingFindings) -> tuple[Picture, ...]:
    if training.test is None:
        return ()
    findings = training.test.findings
    return case_figures(findings, findings.models[0], training.run, training.record.model)


def training_report(run: Path) -> Page:
    """The page of the training in `run`; its figures are drawn.

    Raises:
        UsageError: There is no readable training.
    """
    training = read_training(run)
    text = training_text(training, draw_training_gallery(training))
    files = {"classes.csv": to_csv(training.classes.table())} if training.classes else {}
    return Page(results_of_training(training), text, files, terminal=training_table(training))


def results_of_training(training: TrainingFindings) -> pd.DataFrame:
    """The numbers of one training: a row with the columns of its task."""
    return (
        class_results(training) if training.record.task == "cls" else training_results([training])
    )


def training_text(training: TrainingFindings, gallery: TrainingGallery | None = None) -> str:
    """The Markdown of the page, with the pictures of `gallery`."""
    return from_template(
        "training",
        training=training,
        gallery=gallery or TrainingGallery(),
        headline=_headline(training),
        baseline=training.baseline_numbers,
        gain=gain(training),
        paper=pooled(training),
        zoo=Zoo([training]),
    )


def _headline(training: TrainingFindings) -> str:
    """The score that the title names; empty until it is measured."""
    if training.record.protocol == "paper":
        score = headline(training)
        return "" if score is None else f"{fraction(score.dice)}{score.dice_range}"
    return "" if training.test is None else training.scoring.shown(training.test.numbers)


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
    zoo = Zoo(read_zoo(runs))
    return Page(training_results(zoo.trainings), zoo_text(zoo, draw_zoo_gallery(zoo, out)))


def read_zoo(runs: Sequence[Path]) -> list[TrainingFindings]:
    """The trainings in `runs`, each once.

    Raises:
        UsageError: There is no readable training of a segmenter in one of them.
    """
    trainings = [read_training(run) for run in {run.resolve(): run for run in runs}.values()]
    classifier = next((t for t in trainings if t.record.task != "seg"), None)
    if classifier is not None:
        raise UsageError(
            f"`{classifier.run}` is the training of a classifier.",
            "This report compares several trainings by dice, which classifiers have none of.",
            "Render it alone (`robust report RUN`), or compare classifiers image by image with "
            "`robust compare`.",
        )
    return trainings


def zoo_text(zoo: Zoo, gallery: TrainingGallery | None = None) -> str:
    """The Markdown of the page, with the pictures of `gallery`."""
    return from_template("zoo", zoo=zoo, gallery=gallery or TrainingGallery())
