"""The numbers of a training on its held-out images, beside those of Otsu's threshold."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from robustcli.reports.document import (
    Block,
    Figure,
    Heading,
    Listing,
    Mono,
    Paragraph,
    Table,
    Text,
    cells,
    marked,
    text,
)
from robustcli.reports.numbers import with_range
from robustcli.reports.sections.masks import DETAILS, DETAILS_NOTE, details
from robustcli.reports.sections.relaxed import RELAXED, relaxed_cells, relaxed_note
from robustcli.reports.training import Training
from robustcli.reports.training_scores import Score, group_score, pooled


def held_out(training: Training, strips: Sequence[Figure]) -> list[Block]:
    """The tables and the spread over groups; one sentence until they are measured."""
    heading = Heading(2, text("Held-out images"))
    named = [(training.record.model, training.test), ("otsu", training.baseline)]
    lines = [(name, held.numbers) for name, held in named if held is not None]
    if not lines:
        return [heading, Paragraph(text("Not measured yet."))]
    group = training.record.grouping
    tolerance = training.tolerance
    relaxed = () if tolerance is None else RELAXED
    header = ("model", f"dice per {group}", f"IoU per {group}", *relaxed)
    scores = tuple(
        (*_scores(name, group_score(numbers)), *(relaxed_cells(numbers) if relaxed else ()))
        for name, numbers in lines
    )
    return [
        heading,
        Table(cells(*header), scores),
        *relaxed_note(tolerance),
        *strips,
        Heading(3, text("Single images, precision and recall, borders")),
        Paragraph(text(DETAILS_NOTE)),
        Table(cells("model", *DETAILS), tuple(_details(*line) for line in lines)),
    ]


def _scores(name: str, score: Score) -> tuple[Text, ...]:
    dice = with_range(score.dice, score.dice_low, score.dice_high)
    iou = with_range(score.iou, score.iou_low, score.iou_high)
    return (text(Mono(name)), *cells(dice, iou))


def _details(name: str, numbers: pd.Series) -> tuple[Text, ...]:
    return (text(Mono(name)), *details(numbers))


def paper_protocol(training: Training) -> list[Block]:
    """Protocol `paper` only: both ways of counting, and what is wrong with the paper's."""
    if training.record.protocol != "paper":
        return []
    found, test = pooled(training), training.test
    rows: list[tuple[Text, ...]] = []
    notes: list[Block] = []
    if found is not None:
        rows.append(_named(f"batches of {found.batch} slices, as the paper", found.score))
        if found.undefined:
            told = (
                f"{found.undefined} of {found.batches} batches hold no foreground, true or "
                "predicted; their dice is 0/0 and is left out, their IoU counts as 0."
            )
            notes.append(Paragraph(text(told)))
    if test is not None:
        rows.append(_named(f"per {training.record.grouping}", group_score(test.numbers)))
    table: list[Block] = [Table(cells("counted", "dice", "IoU"), tuple(rows))] if rows else []
    faults = Listing(tuple(marked(fault) for fault in training.record.faults))
    title = Heading(3, text("Known faults of this protocol, kept on purpose"))
    return [
        Heading(2, text("The paper's way of counting")),
        *table,
        *notes,
        *((title, faults) if faults.items else ()),
    ]


def _named(how: str, score: Score) -> tuple[Text, ...]:
    dice = with_range(score.dice, score.dice_low, score.dice_high)
    return cells(how, dice, with_range(score.iou, score.iou_low, score.iou_high))
