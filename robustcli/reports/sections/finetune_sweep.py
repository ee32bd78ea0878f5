"""What other rules of freezing would save, and at what dice."""

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
from robustcli.reports.numbers import EN_DASH, MISSING, decimal, is_missing, with_range
from robustcli.reports.rules import rule_label, rule_scope

HEADER = ("rule", "chosen from", "frozen %", "time saved %", "dice")


def sweep(found: Finetuning, figures: Sequence[Figure]) -> list[Block]:
    """The picture and the table; nothing where no sweep was made."""
    if found.sweep is None:
        return []
    words = (
        "Time saved is that of an iteration after the freeze against full fine-tuning, in percent; "
        "below 0 it took longer. Ranges are 95 % intervals."
    )
    rows = tuple(_row(row) for _, row in found.sweep.iterrows())
    table = Table(cells(*HEADER), rows, left=2)
    heading = Heading(2, text("Time saved against dice, rule by rule"))
    return [heading, *figures, table, Paragraph(text(words))]


def _row(row: pd.Series) -> tuple[Text, ...]:
    dice = with_range(row["dice"], row["dice_low"], row["dice_high"])
    share = decimal(100 * row["frozen_share"], 1)
    middle = cells(rule_scope(row), share, saved(row), dice)
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
