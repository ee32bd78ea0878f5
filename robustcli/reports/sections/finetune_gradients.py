"""Which parameters still learn: the profile of the gradients, and what was frozen for it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from robustcli.reports.document import (
    Block,
    Figure,
    Heading,
    Mono,
    Paragraph,
    Strong,
    Table,
    Text,
    cells,
    marked,
    text,
)
from robustcli.reports.finetuning import Finetuning
from robustcli.reports.numbers import MISSING, counted, is_missing
from robustcli.reports.rules import is_within, statistic_name

HEADER = ("parameter", "shape", "count", "statistic", "frozen", "why")


def gradients(found: Finetuning, figures: Sequence[Figure]) -> list[Block]:
    """The picture, and the table of the tensors that the rule chose from."""
    heading = Heading(2, text("Gradients and what was frozen"))
    if found.decisions is None:
        waiting = "The profile is not complete yet: nothing is decided."
        return [heading, *figures, Paragraph(text(waiting))]
    near = chosen_from(found)
    rest = len(found.decisions) - len(near)
    words = f"Statistic: {statistic_name(found.record.rule)}. The smallest comes first."
    if rest:
        words += f" {counted(rest, 'more tensor')}, out of the rule's reach, under “Every tensor”."
    return [heading, *figures, Paragraph(text(words)), _table(near)]


def every_tensor(found: Finetuning) -> list[Block]:
    """The table of all tensors, where the first one left some out."""
    if found.decisions is None or len(chosen_from(found)) == len(found.decisions):
        return []
    return [Heading(2, text("Every tensor")), _table(ordered(found.decisions))]


def chosen_from(found: Finetuning) -> pd.DataFrame:
    """The tensors that the rule could freeze, and those it froze, the smallest statistic first."""
    assert found.decisions is not None
    table = found.decisions
    return ordered(table[table["frozen"] | is_within(found.record.rule, table["mamba"])])


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with the smallest statistic first; tensors without one at the end."""
    return table.sort_values("statistic", kind="stable", na_position="last")


def statistic(value: float | None) -> str:
    """A statistic with two digits."""
    if value is None or is_missing(value):
        return MISSING
    return "0" if value == 0 else f"{value:.1e}"


def _table(table: pd.DataFrame) -> Table:
    rows = [_row(row) for _, row in table.iterrows()]
    return Table(cells(*HEADER), tuple(rows))


def _row(row: pd.Series) -> tuple[Text, ...]:
    shape = str(row["shape"]).replace("x", " x ")
    frozen = text(Strong("frozen")) if row["frozen"] else text("no")
    middle = cells(shape, f"{row['count']:,}", statistic(row["statistic"]))
    return (text(Mono(str(row["name"]))), *middle, frozen, marked(str(row["why"])))
