"""The report of one training, and the results of several: numbers, figures, page, printed table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from robustcli.core.io import to_csv
from robustcli.core.names import TaskName, counted
from robustcli.metrics.class_scores import confusion_matrix, reliability
from robustcli.metrics.intervals import wilson_interval
from robustcli.metrics.mask_scores import group_dice
from robustcli.reports.evaluation_page import RELIABILITY_CAPTION, case_figures, class_pictures
from robustcli.reports.figures.canvas import Estimate
from robustcli.reports.figures.evaluation_figures import (
    COUNTED_UP_TO,
    MOST_CONFUSED_CLASSES,
    draw_confusions,
    draw_reliability,
)
from robustcli.reports.figures.training_figures import (
    Course,
    Level,
    Point,
    Strip,
    draw_curves,
    draw_scatter,
    draw_strips,
)
from robustcli.reports.markdown import Picture, from_template
from robustcli.reports.numbers import (
    as_printed,
    fraction,
    fraction_range,
    some_of,
    with_range,
)
from robustcli.reports.pages import Page, grid, in_ascii, typed_table
from robustcli.reports.training_findings import (
    HeldOutResults,
    Score,
    Spread,
    TrainingFindings,
    gain,
    group_score,
    headline,
    pooled,
    read_training,
)
from robustcli.reports.zoo_findings import Baseline, Zoo, ZooRow, printed_of
from robustcli.training.record import VALIDATIONS

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
    *("peak_memory_bytes", "weights_bytes", "multiply_adds", "seed"),
)
_COSTS = ("recipe", "seed", "multiply_adds", "train_seconds", "val_seconds", "images_per_second")
_VALIDATED = {
    task: tuple(f"{which}_{name}" for which in ("chosen", "last") for name in validation.columns)
    for task, validation in VALIDATIONS.items()
}
"""Scores of the validation images after the selected epoch and after the last epoch."""
SEGMENTER_COLUMNS = (
    *("run", "model", "protocol", "dataset", "status"),
    *_MASKS,
    *(f"paper_{name}" for name in _PAPER),
    *("params", "epochs", "chosen_epoch", "seconds", "peak_memory_bytes", "energy_joules"),
    *("weights_bytes", "published_dice", "published_iou", "baseline_dice", "baseline_iou"),
    *_COSTS,
    *_VALIDATED["seg"],
)
CLASSIFIER_COLUMNS = (
    *("run", "model", "dataset", "status", "n", "correct", "top1", "top1_low", "top1_high"),
    *("top5", "params", "epochs", "chosen_epoch", "seconds", "peak_memory_bytes"),
    *("energy_joules", "weights_bytes", "baseline_top1"),
    *("f1", "f1_low", "f1_high", "ece", "ece_low", "ece_high"),
    *_COSTS,
    *_VALIDATED["cls"],
)
_WORDS = (*SEGMENTER_COLUMNS[:5], "recipe")


def training_results(trainings: Sequence[TrainingFindings]) -> pd.DataFrame:
    """The results of trainings of one task: a row each, with the columns of the task.

    Shares are fractions in [0, 1]; unknown values are missing. `dice` and `iou` are pooled within
    groups (`protocol` patient), `paper_dice` and `paper_iou` over batches as in the paper.
    `train_seconds` and `val_seconds` are of the median epoch.
    """
    if all(training.record.task == "cls" for training in trainings):
        columns, rows = CLASSIFIER_COLUMNS, [_of_classifier(training) for training in trainings]
    else:
        columns, rows = SEGMENTER_COLUMNS, [_of_segmenter(training) for training in trainings]
    return typed_table(rows, columns, words=_WORDS, counts=_COUNTS)


def _of_classifier(training: TrainingFindings) -> dict[str, object]:
    row, test, baseline = _of_any(training), training.test, training.baseline_numbers
    if test is not None:
        row |= {name: test.numbers[name] for name in training.scoring.columns}
    for numbers in (training.macro_f1, training.calibration):
        known = {} if numbers is None else asdict(numbers)
        row |= {name: value for name, value in known.items() if name.startswith(("f1", "ece"))}
    row["baseline_top1"] = None if baseline is None else baseline["top1"]
    return row


def _of_any(training: TrainingFindings) -> dict[str, object]:
    """The columns that the results of segmenters and classifiers share."""
    record = training.record
    return {
        "run": training.run.resolve().name,
        "model": record.network,
        "dataset": record.dataset.name,
        "status": record.status,
        "params": record.parameters,
        "epochs": training.epochs,
        "chosen_epoch": record.chosen_epoch,
        "seconds": training.seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "energy_joules": record.energy_joules,
        "weights_bytes": training.weights_bytes,
        "recipe": record.recipe.name or None,
        "seed": record.seed,
        "multiply_adds": record.multiply_adds,
        "train_seconds": _median(training.train_seconds),
        "val_seconds": _median(training.val_seconds),
        "images_per_second": training.images_per_second,
        **{f"chosen_{k}": v for k, v in training.validated(record.chosen_epoch).items()},
        **{f"last_{k}": v for k, v in training.validated(training.last_epoch).items()},
    }


def _median(spread: Spread | None) -> float | None:
    return None if spread is None else spread.median


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
    """The figures of a training; empty tuples for kinds without figures."""

    scatter: tuple[Picture, ...] = ()
    curves: tuple[Picture, ...] = ()
    strips: tuple[Picture, ...] = ()
    cases: tuple[Picture, ...] = ()
    confusions: tuple[Picture, ...] = ()
    reliability: tuple[Picture, ...] = ()
    classes: tuple[Picture, ...] = ()


def draw_training_gallery(training: TrainingFindings) -> TrainingGallery:
    """Draws all figures for which one training has data."""
    if not training.scoring.per_group:
        return TrainingGallery(
            curves=_curves(training),
            confusions=_confusions(training),
            reliability=_reliability(training),
        )
    return TrainingGallery(
        () if training.mask_classes else draw_dice_over_parameters(training.out, Zoo([training])),
        _curves(training),
        _strips(training),
        _cases(training),
        classes=_classes(training),
    )


def _confusions(training: TrainingFindings) -> tuple[Picture, ...]:
    if training.classes is None or training.test is None:
        return ()
    rows, names = training.test.rows, training.classes.class_names
    classes, counts = confusion_matrix(*(rows[c].to_numpy() for c in ("target", "prediction")))
    if len(classes) > MOST_CONFUSED_CLASSES:
        return ()
    path = "figures/confusions.png"
    draw_confusions([names[index] for index in classes], counts, training.out / path)
    counted_words = " The numbers count images." if len(classes) <= COUNTED_UP_TO else ""
    caption = (
        "Held-out images by true class (line) and predicted class (column); the diagonal contains "
        f"the correct predictions. Darker cells have a larger share of the line.{counted_words}"
    )
    return (Picture(path, caption),)


def _reliability(training: TrainingFindings) -> tuple[Picture, ...]:
    if training.test is None:
        return ()
    path, name = "figures/reliability.png", training.record.model
    panels = {"held-out images": {name: reliability(training.test.rows)}}
    draw_reliability(panels, training.out / path)
    return (Picture(path, RELIABILITY_CAPTION),)


def draw_dice_over_parameters(out: Path, zoo: Zoo) -> tuple[Picture, ...]:
    """Draws dice against parameters, measured and published, into `out`/figures."""
    points = [point for row in zoo.rows for point in _points(row)]
    path = "figures/dice_over_parameters.png"
    draw_scatter(points, [_level(baseline) for baseline in zoo.baselines], out / path)
    caption = (
        "Dice against the number of parameters. Circles: as published (LGG, protocol paper); "
        "diamonds: measured here with the protocol of the run, with 95 % intervals, connected to "
        "the published value of the same network. Dashed: Otsu's threshold on the held-out images "
        "of this run; it has no parameters."
    )
    return (Picture(path, caption),)


def _points(row: ZooRow) -> list[Point]:
    points = []
    if row.printed is not None:
        name, dice = row.printed.model, Estimate.exact(row.printed.dice)
        points.append(Point(name, name, row.printed.parameters, dice))
    if row.training is not None and row.score is not None and row.score.dice is not None:
        network, dice = row.training.record.network, Estimate.of(asdict(row.score), "dice")
        points.append(Point(row.label, network, row.parameters, dice, measured=True))
    return list(dict.fromkeys(points))


def _level(baseline: Baseline) -> Level:
    value = float(baseline.numbers["dice"])
    place = f" ({baseline.images})" if baseline.images else ""
    return Level(f"Otsu{place}: {fraction(value)}", value)


def _curves(training: TrainingFindings) -> tuple[Picture, ...]:
    if training.metrics.empty:
        return ()
    path, scoring = "figures/curves.png", training.scoring
    course = course_of(training, training.record.network)
    draw_curves(course, training.out / path, scoring.panel)
    caption = (
        f"Losses (left) and {scoring.validated} (right) of {validated(training)}, epoch by epoch."
    )
    return (Picture(path, caption),)


def validated(training: TrainingFindings) -> str:
    """The images on which the validation score is measured and how they are pooled, as text."""
    if not training.scoring.per_group:
        return "the validation images"
    if training.record.recipe.patches is not None:
        return "random validation patches (all pixels of an epoch pooled: pseudo dice)"
    return f"the validation images (pooled within each {training.record.grouping}, then averaged)"


def course_of(training: TrainingFindings, name: str) -> Course:
    """The rows of `metrics.csv`, for a figure in which the training is called `name`."""
    return Course(name, training.metrics, training.record.chosen_epoch)


def _strips(training: TrainingFindings) -> tuple[Picture, ...]:
    named = [(training.record.network, training.test), ("otsu", training.baseline)]
    strips = [strip(name, held) for name, held in named if held is not None]
    if not strips:
        return ()
    path, grouping = "figures/groups.png", training.record.grouping
    draw_strips(strips, grouping, training.out / path)
    return (
        Picture(path, f"Dice of each held-out {grouping}, with the pixels of its images pooled."),
    )


def strip(name: str, held: HeldOutResults) -> Strip:
    """The dice of the groups of held-out images of one model, called `name`."""
    return Strip(name, group_dice(held.rows), Estimate.of(held.numbers, "dice"))


def _classes(training: TrainingFindings) -> tuple[Picture, ...]:
    if training.test is None or not training.mask_classes:
        return ()
    model = training.test.findings.models[0].name
    return class_pictures(training.mask_classes, model, training.out, training.record.network)


def _cases(training: TrainingFindings) -> tuple[Picture, ...]:
    if training.test is None:
        return ()
    findings = training.test.findings
    return case_figures(findings, findings.models[0], training.out, training.record.network)


def training_report(run: Path, out: Path | None = None) -> Page:
    """The page of the training in `run`; draws its figures into `out`, by default `run`.

    Raises:
        UsageError: The training does not exist or cannot be read.
    """
    training = read_training(run, out)
    text = training_text(training, draw_training_gallery(training))
    tables = {} if training.classes is None else training.classes.tables()
    if training.mask_classes:
        tables = {"classes.csv": training.mask_classes.table()}
    return Page(
        training_results([training]),
        text,
        {"classes.csv": to_csv(tables["classes.csv"])} if "classes.csv" in tables else {},
        terminal=training_table(training),
    )


def training_text(training: TrainingFindings, gallery: TrainingGallery | None = None) -> str:
    """The Markdown of the page, with the figures of `gallery`."""
    return from_template(
        "training",
        training=training,
        gallery=gallery or TrainingGallery(),
        headline=_headline(training),
        baseline=training.baseline_numbers,
        sentences=class_sentences(training),
        score_names=SCORE_NAMES,
        gain=gain(training),
        paper=pooled(training),
        zoo=Zoo([training]),
    )


SCORE_NAMES = {"val_top1": "top-1", "val_f1": "macro F1", "val_dice": "dice", "val_iou": "IoU"}
"""Display names of columns of `metrics.csv`."""


def class_sentences(training: TrainingFindings) -> list[str]:
    """Sentences on the hardest class of a classifier; names are in backticks.

    The hardest class is the one with the lowest F1. It is reported as below the others only if the
    interval of its recall, adjusted for the number of classes by Bonferroni's method, is below that
    of the images of all other classes together: the lowest of many equal classes is low by chance.
    """
    statistics = training.classes
    lines = [] if statistics is None else statistics.classes
    if statistics is None or len(lines) < 2:
        return []
    confusion = [
        f"Most often `{most.target}` is taken for `{most.prediction}`: "
        f"{counted(most.clean, 'image')}."
        for most in statistics.confusions[:1]
    ]
    worst = min(lines, key=lambda line: line.f1)
    tied = [line.name for line in lines if line.f1 == worst.f1]
    if len(tied) > 1:
        names = some_of([f"`{name}`" for name in tied])
        return [f"The classes with the lowest F1 are {names}: {fraction(worst.f1)}.", *confusion]
    other_lines = [line for line in lines if line is not worst]
    other_recall = wilson_interval(
        sum(line.correct for line in other_lines), sum(line.n for line in other_lines)
    )
    adjusted = wilson_interval(worst.correct, worst.n, 1 - 0.05 / len(lines))
    is_lower = adjusted.high < other_recall.low
    return [
        f"The class with the lowest F1 is `{worst.name}`: {fraction(worst.f1)}; "
        f"{worst.correct:,} of its {counted(worst.n, 'image')} are right (recall "
        f"{with_range(worst.top1, worst.top1_low, worst.top1_high)}), of all others "
        f"{fraction_range(other_recall.low, other_recall.high, ' to ')}"
        f"{'' if is_lower else f': the lowest of {len(lines)} classes may be so by chance'}.",
        *confusion,
    ]


def _headline(training: TrainingFindings) -> str:
    """The score in the title; empty until it is measured."""
    if training.record.protocol == "paper":
        score = headline(training)
        return "" if score is None else score.dice_words
    return "" if training.test is None else training.scoring.shown(training.test.numbers)


# The tables that `robust train` prints.


def training_table(training: TrainingFindings) -> str:
    """A training's result on its held-out images, and the baseline's on the same images."""
    return in_ascii(_TRAINING_TABLES[training.record.task](training))


def _mask_table(training: TrainingFindings) -> str:
    """The table of a segmentation training, with the published scores.

    The column `with foreground` is the mean over images that have foreground.
    """
    record, printed = training.record, printed_of(training.record)
    relaxed = () if training.tolerance is None else ("relaxed_precision", "relaxed_recall")
    of_classes = " and classes" if record.dataset.mask_classes else ""
    held = ((record.network, training.test), ("otsu", training.baseline))
    rows = [
        (
            *_held_out(name, test, f"{record.grouping}s{of_classes}"),
            *(fraction(test.numbers[c]) for c in relaxed),
        )
        for name, test in held
        if test is not None
    ]
    paper = pooled(training)
    if paper is not None:
        rows.append(_scored(record.network, paper.score, "", f"batches of {paper.batch}"))
    if printed is not None:
        numbers = (as_printed(printed.dice), "", "", as_printed(printed.iou), "")
        rows.append((f"{record.network}, published", *numbers, "batches, LGG"))
    header = (
        "model",
        "dice",
        "95 % interval",
        "with foreground",
        "IoU",
        "95 % interval",
        "mean over",
        *(column.replace("_", " ") for column in relaxed),
    )
    return grid(header, [(*row, *("",) * (len(header) - len(row))) for row in rows])


def _held_out(name: str, held: HeldOutResults, over: str) -> tuple[str, ...]:
    foreground = fraction(held.numbers["dice_foreground"])
    return _scored(name, group_score(held.numbers), foreground, over)


def _class_table(training: TrainingFindings) -> str:
    scoring, test, baseline = training.scoring, training.test, training.baseline_numbers
    if test is None or baseline is None:
        return "Nothing is measured yet."
    lines = [(training.record.network, test.numbers), (scoring.baseline, baseline)]
    rows: list[tuple[str, ...]] = [(name, *scoring.cells(numbers)) for name, numbers in lines]
    return grid(("model", "top-1 (95 % interval)", *scoring.heads[1:]), rows)


def _scored(name: str, score: Score, foreground: str, over: str) -> tuple[str, ...]:
    dice = fraction_range(score.dice_low, score.dice_high, "-")
    iou = fraction_range(score.iou_low, score.iou_high, "-")
    return (name, fraction(score.dice), dice, foreground, fraction(score.iou), iou, over)


_TRAINING_TABLES: Mapping[TaskName, Callable[[TrainingFindings], str]] = {
    "cls": _class_table,
    "seg": _mask_table,
}
