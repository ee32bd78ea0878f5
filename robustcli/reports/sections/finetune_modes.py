"""The modes of a fine-tuning side by side: what each cost, and what it gave."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

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
)
from robustcli.reports.sections.finetune_verdict import (
    mebibytes,
    megabytes,
    p_value,
    score_of,
    seconds,
)
from robustcli.reports.sections.masks import DETAILS, DETAILS_NOTE, details
from robustcli.reports.sections.relaxed import RELAXED, relaxed_cells, relaxed_note
from robustcli.reports.training import Held

COSTS = (
    *("mode", "iterations/s", "s per iteration (middle half)", "trained parameters", "frozen"),
    *("optimizer", "peak memory", "training time", "epochs"),
)
_COSTS_NOTE = (
    "Iterations: medians of training steps (forward, backward, update; without waiting for "
    "images), for freeze of those after the freeze. Training time is of all epochs with their "
    "validation. Optimizer: the tensors that it keeps between steps, at the end."
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
    scoring = found.scoring
    relaxed = () if found.tolerance is None else RELAXED
    rows = [_score(found, run, len(relaxed)) for run in found.modes]
    floors = (run.training.floor for run in found.modes)
    floor = next((one for one in floors if one is not None), None)
    if floor is not None:
        own = cells(scoring.shown(floor), scoring.second_shown(floor))
        own = (*own, *(relaxed_cells(pd.Series(floor)) if relaxed else ()))
        rows.append((text(Mono(scoring.baseline)), *own, *cells(MISSING, MISSING)))
    name = scoring.measure.name
    header = ("mode", name, scoring.second, *relaxed, f"{name} minus full", "p")
    notes = [Paragraph(text(scoring.score_note)), *relaxed_note(found.tolerance)]
    return [Table(cells(*header), tuple(rows)), *notes]


def _score(found: Finetuning, run: ModeRun, relaxed: int) -> tuple[Text, ...]:
    """A line of the table, with so many cells for relaxed numbers."""
    name, test = text(Mono(run.mode)), run.training.test
    if test is None:
        return (name, *cells(*(MISSING,) * (4 + relaxed)))
    scoring, one = found.scoring, against_full(found, run.mode)
    own = cells(score_of(run), scoring.second_shown(test.numbers))
    own = (*own, *(relaxed_cells(test.numbers) if relaxed else ()))
    if one is None:
        return (name, *own, *cells(MISSING, MISSING))
    apart = scoring.apart
    ends = "" if one.low is None else f" ({apart(one.low)} to {apart(one.high)})"
    p = MISSING if one.p is None else p_value(one.p)
    return (name, *own, *cells(f"{apart(one.value)}{ends}", p))


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
    """A segmenter's held-out images in detail; nothing until they are measured."""
    named: list[tuple[str, Held]] = [
        (run.mode, run.training.test) for run in found.modes if run.training.test is not None
    ]
    if not named or found.record.task != "seg":
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
