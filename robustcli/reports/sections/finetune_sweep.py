"""What other rules of freezing would save, and at what score."""

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
from robustcli.reports.finetuning import Finetuning
from robustcli.reports.numbers import EN_DASH, MISSING, decimal, is_missing
from robustcli.reports.rules import rule_label, rule_scope


def sweep(found: Finetuning, figures: Sequence[Figure]) -> list[Block]:
    """The picture and the table; nothing where no sweep was made."""
    if found.sweep is None:
        return []
    words = (
        "Time saved is that of an iteration after the freeze against full fine-tuning, in percent; "
        "below 0 it took longer. Ranges are 95 % intervals."
    )
    rows = tuple(_row(found, row) for _, row in found.sweep.iterrows())
    name = found.scoring.measure.name
    header = ("rule", "chosen from", "frozen %", "time saved %", name)
    table = Table(cells(*header), rows, left=2)
    heading = Heading(2, text(f"Time saved against {name}, rule by rule"))
    return [heading, *figures, table, Paragraph(text(words))]


def _row(found: Finetuning, row: pd.Series) -> tuple[Text, ...]:
    score = found.scoring.shown_in(row, found.held)
    share = decimal(100 * row["frozen_share"], 1)
    middle = cells(rule_scope(row), share, saved(row), score)
    return (text(Mono(rule_label(row))), *middle)


def saved(row: pd.Series) -> str:
    """The saving of a line of the sweep in percent, with its interval."""
    value, low, high = (row[f"seconds_ratio{end}"] for end in ("", "_low", "_high"))
    if is_missing(value):
        return MISSING
    told = decimal(100 * (1 - value))
    if is_missing(low) or is_missing(high):
        return told
    return f"{told} ({decimal(100 * (1 - high))}{EN_DASH}{decimal(100 * (1 - low))})"
