"""The table in the form of the paper's Table I: published numbers and own ones side by side."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.reports.document import (
    Block,
    Figure,
    Heading,
    Listing,
    Mono,
    Paragraph,
    Strong,
    Table,
    Text,
    cells,
    text,
)
from robustcli.reports.numbers import (
    MISSING,
    as_printed,
    decimal,
    duration,
    fraction,
    signed,
    with_range,
)
from robustcli.reports.sections.zoo_remarks import zoo_remarks
from robustcli.reports.training import Training
from robustcli.reports.training_scores import group_score
from robustcli.reports.zoo_rows import Baseline, ZooRow, baselines, zoo_rows

HEADER = (
    *("model", "parameters", "published dice", "published IoU", "dice here", "IoU here"),
    *("with foreground", "difference", "epochs", "training time", "peak memory", "state file"),
)
ENERGY = "energy"


def zoo_table(trainings: Sequence[Training], scatter: Sequence[Figure]) -> list[Block]:
    """The section: the table, what is to be known of it, and dice against parameters."""
    rows = zoo_rows(trainings)
    energy = any(training.record.energy_joules is not None for training in trainings)
    header = (*HEADER, *((ENERGY,) if energy else ()))
    lines = [
        *(_line(row, energy) for row in rows),
        *(_baseline(b, energy) for b in baselines(trainings)),
    ]
    return [
        Heading(2, text("Published and measured")),
        Table(cells(*header), tuple(lines)),
        Paragraph(text(_READING)),
        Listing(tuple(zoo_remarks(rows, trainings))),
        *scatter,
    ]


_READING = (
    "Dice and IoU here are those of the run's own protocol on its held-out images (patient: mean "
    "over groups; paper: mean over batches of slices), with 95 % bootstrap intervals over these; "
    "Otsu's threshold is always scored over groups. With foreground: dice per image over images "
    "that have any. Difference: dice here minus the published one; "
    "“outside” marks a published dice outside the interval. Times are of all epochs with their "
    "validation. State file: the chosen weights, in 10⁶ bytes."
)


def _line(row: ZooRow, energy: bool) -> tuple[Text, ...]:
    printed, score = row.printed, row.score
    known = cells(
        f"{row.parameters:,}",
        as_printed(printed.dice) if printed else MISSING,
        as_printed(printed.iou) if printed else MISSING,
    )
    iou = with_range(score.iou, score.iou_low, score.iou_high) if score else MISSING
    own = (_own(row), text(iou), text(_foreground(row)), _difference(row))
    return (text(Mono(row.label)), *known, *own, *cells(*_costs(row, energy)))


def _foreground(row: ZooRow) -> str:
    if row.training is None or row.training.test is None:
        return MISSING
    return fraction(row.training.test.numbers["dice_foreground"])


def _own(row: ZooRow) -> Text:
    """The own dice, to be found at a glance."""
    score = row.score
    if score is None:
        return text(MISSING)
    number = fraction(score.dice)
    return text(
        Strong(number), with_range(score.dice, score.dice_low, score.dice_high)[len(number) :]
    )


def _difference(row: ZooRow) -> Text:
    told = signed(row.difference)
    return text(f"{told} ", Strong("outside")) if row.is_outside else text(told)


def _costs(row: ZooRow, energy: bool) -> tuple[str, ...]:
    training = row.training
    if training is None:
        return (MISSING,) * (4 + energy)
    record, size = training.record, training.weights_bytes
    memory, joules = record.peak_memory_bytes, record.energy_joules
    costs = (
        str(training.epochs),
        duration(training.seconds),
        MISSING if memory is None else f"{decimal(memory / 2**30, 2)} GiB",
        MISSING if size is None else f"{decimal(size / 1e6, 2)} MB",
    )
    used = MISSING if joules is None else f"{decimal(joules / 3600)} Wh"
    return (*costs, used) if energy else costs


def _baseline(baseline: Baseline, energy: bool) -> tuple[Text, ...]:
    """The line of Otsu's threshold, which nothing was printed of and nothing was spent on."""
    score = group_score(baseline.numbers)
    place = f" ({baseline.images})" if baseline.images else ""
    known = cells("0", MISSING, MISSING)
    dice = with_range(score.dice, score.dice_low, score.dice_high)
    iou = with_range(score.iou, score.iou_low, score.iou_high)
    foreground = fraction(baseline.numbers["dice_foreground"])
    rest = (MISSING,) * (len(HEADER) + energy - 7)
    return (text(Mono("otsu"), place), *known, *cells(dice, iou, foreground, *rest))
