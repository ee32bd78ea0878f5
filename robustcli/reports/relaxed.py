"""Relaxed precision and recall in reports, of data that have a tolerance and only of these."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from robustcli.reports.document import (
    Block,
    Paragraph,
    Text,
    cells,
    text,
)
from robustcli.reports.measure import DICE
from robustcli.reports.numbers import (
    counted,
    with_range,
)

RELAXED = ("relaxed precision", "relaxed recall")
MEASURES = tuple(replace(DICE, column=name.replace(" ", "_"), name=name) for name in RELAXED)


def relaxed_cells(numbers: pd.Series) -> tuple[Text, ...]:
    """The cells under RELAXED of a line with `metrics.SEG_COLUMNS`."""
    return cells(*_told(numbers))


def relaxed_words(numbers: pd.Series) -> str:
    """Both numbers of a line with `metrics.SEG_COLUMNS`, as a part of a sentence."""
    return " and ".join(_told(numbers))


def relaxed_note(tolerance: int | None) -> list[Block]:
    """How to read the numbers; nothing for data without a tolerance."""
    if tolerance is None:
        return []
    pixels = counted(tolerance, "pixel")
    told = (
        f"Relaxed precision is the share of predicted pixels within {pixels} of a true one, "
        f"relaxed recall that of true pixels within {pixels} of a predicted one (Euclidean "
        "distances). The pixels of all images are pooled."
    )
    return [Paragraph(text(told))]


def relaxed_source(tolerance: int | None) -> tuple[Text, ...]:
    """Where the way of counting comes from, and how it differs; nothing without a tolerance."""
    if tolerance is None:
        return ()
    told = (
        f"Relaxed precision and recall: {counted(tolerance, 'pixel')}, as V. Mnih, Machine "
        "Learning for Aerial Image Labeling, PhD thesis, University of Toronto, 2013. Numbers "
        "published with it are mostly those of the threshold at which both are equal; here they "
        "are of the predicted mask."
    )
    return (text(told),)


def _told(numbers: pd.Series) -> list[str]:
    return [
        with_range(*(numbers[f"{m.column}{end}"] for end in ("", "_low", "_high")))
        for m in MEASURES
    ]
