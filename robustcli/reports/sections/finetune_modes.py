"""The modes of a fine-tuning side by side: what each cost, and what it gave."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.reports.document import (
    Block,
    Figure,
    Heading,
    Mono,
    Paragraph,
    Table,
    Text,
    cells,
    text,
)
from robustcli.reports.finetuning import Finetuning, ModeRun
from robustcli.reports.finetuning_gallery import FinetuningGallery
from robustcli.reports.finetuning_scores import against_full, frozen_elements, pace
from robustcli.reports.numbers import (
    EN_DASH,
    MISSING,
    decimal,
    duration,
    signed,
    with_range,
)
from robustcli.reports.sections.finetune_verdict import (
    mebibytes,
    megabytes,
    p_value,
    seconds,
)
from robustcli.reports.sections.masks import DETAILS, DETAILS_NOTE, details
from robustcli.reports.sections.relaxed import RELAXED, relaxed_cells, relaxed_note
from robustcli.reports.training import Held
from robustcli.reports.training_scores import group_score

COSTS = (
    *("mode", "iterations/s", "s per iteration (middle half)", "trained parameters", "frozen"),
    *("optimizer", "peak memory", "training time", "epochs"),
)
SCORES = ("mode", "dice", "IoU")
COMPARED = ("dice minus full", "p")
_COSTS_NOTE = (
    "Iterations: medians of training steps (forward, backward, update; without waiting for "
    "images), for freeze of those after the freeze. Training time is of all epochs with their "
    "validation. Optimizer: the tensors that it keeps between steps, at the end."
)
_SCORES_NOTE = (
    "In brackets: 95 % bootstrap intervals over groups, of the differences paired ones. p: "
    "sign-flip test of the mean difference of the images' own dice, all images of a group flipped "
    "together."
)


def modes(found: Finetuning, gallery: FinetuningGallery) -> list[Block]:
    """The tables, the curves and the spread over groups; nothing for a run that only profiles."""
    if not found.record.modes:
        return []
    heading = Heading(2, text("Modes"))
    if not found.modes:
        return [heading, Paragraph(text("None has begun yet."))]
    return [
        heading,
        *_scores(found),
        *gallery.modes,
        Heading(3, text("What each mode cost")),
        Table(cells(*COSTS), tuple(_cost(run) for run in found.modes)),
        Paragraph(text(_COSTS_NOTE)),
        *_held_out(found, gallery.strips),
    ]


def _scores(found: Finetuning) -> list[Block]:
    relaxed = () if found.tolerance is None else RELAXED
    header = (*SCORES, *relaxed, *COMPARED)
    none = cells(*(MISSING,) * (len(header) - 1))
    rows: list[tuple[Text, ...]] = []
    for run in found.modes:
        test, compared = run.training.test, _compared(found, run)
        own = none if test is None else (*_own(test, relaxed=bool(relaxed)), *compared)
        rows.append((text(Mono(run.mode)), *own))
    otsu = _baseline(found)
    if otsu is not None:
        own = _own(otsu, relaxed=bool(relaxed))
        rows.append((text(Mono("otsu")), *own, *cells(MISSING, MISSING)))
    notes = [Paragraph(text(_SCORES_NOTE)), *relaxed_note(found.tolerance)]
    return [Table(cells(*header), tuple(rows)), *notes]


def _own(held: Held, *, relaxed: bool) -> tuple[Text, ...]:
    score = group_score(held.numbers)
    dice = with_range(score.dice, score.dice_low, score.dice_high)
    iou = with_range(score.iou, score.iou_low, score.iou_high)
    return (*cells(dice, iou), *(relaxed_cells(held.numbers) if relaxed else ()))


def _compared(found: Finetuning, run: ModeRun) -> tuple[Text, ...]:
    one = against_full(found, run.mode)
    if one is None:
        return cells(MISSING, MISSING)
    ends = "" if one.low is None else f" ({signed(one.low)} to {signed(one.high)})"
    return cells(f"{signed(one.dice)}{ends}", MISSING if one.p is None else p_value(one.p))


def _baseline(found: Finetuning) -> Held | None:
    held = [run.training.baseline for run in found.modes]
    return next((one for one in held if one is not None), None)


def _cost(run: ModeRun) -> tuple[Text, ...]:
    speed, costs, frozen = pace(run), run.costs, frozen_elements(run)
    times = (MISSING, MISSING)
    if speed is not None:
        half = f"({seconds(speed.low)}{EN_DASH}{seconds(speed.high)})"
        times = (decimal(1 / speed.median, 2), f"{seconds(speed.median)} {half}")
    kept = (MISSING,) * 4
    if costs is not None:
        peak = costs.peak_memory_bytes
        memory = MISSING if peak is None else mebibytes(peak)
        counts = (f"{costs.trainable:,}", f"{frozen or 0:,}")
        kept = (*counts, megabytes(costs.optimizer_bytes), memory)
    rest = (duration(run.training.seconds), str(run.training.epochs))
    return (text(Mono(run.mode)), *cells(*times, *kept, *rest))


def _held_out(found: Finetuning, strips: Sequence[Figure]) -> list[Block]:
    """The held-out images in detail; nothing until they are measured."""
    named: list[tuple[str, Held]] = [
        (run.mode, run.training.test) for run in found.modes if run.training.test is not None
    ]
    if not named:
        return []
    otsu = _baseline(found)
    rows = [*named, *([("otsu", otsu)] if otsu is not None else [])]
    table = tuple((text(Mono(name)), *details(held.numbers)) for name, held in rows)
    return [
        *strips,
        Heading(3, text("Single images, precision and recall, borders")),
        Paragraph(text(DETAILS_NOTE)),
        Table(cells("mode", *DETAILS), table),
    ]
