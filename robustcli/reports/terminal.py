"""How a comparison over transforms is laid out in a terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from tabulate import tabulate

from robustcli.reports.measure import Measure
from robustcli.reports.numbers import cell_label, percent
from robustcli.reports.ranking import extremes

MODELS_ABREAST = 4


@dataclass(frozen=True)
class Kind:
    """What the table of a task shows.

    Args:
        measure: Its number.
        header: Over the number.
        unit: After the number in a sentence.
        extra: Over one more column.
        show_extra: What that column says of a row.
        show_clean: What a sentence says of the row of the untouched images.
    """

    measure: Measure
    header: str
    unit: str
    extra: str
    show_extra: Callable[[pd.Series], str]
    show_clean: Callable[[pd.Series], str]

    def value(self, row: pd.Series) -> str:
        """The number of `row`."""
        return self.measure.show(row[self.measure.column], int(row["n"]))

    def interval(self, row: pd.Series) -> str:
        """Its interval."""
        low, high = (row[f"{self.measure.column}_{end}"] for end in ("low", "high"))
        return self.measure.show_range(low, high, int(row["n"]), "-")


def comparison_table(table: pd.DataFrame, kind: Kind) -> str:
    """Transforms x models: the number with its interval, then one line per model.

    One model gets more columns; many models get several tables of at most MODELS_ABREAST.
    """
    models = [str(name) for name in table["model"].unique()]
    if len(models) == 1:
        grids = [_detailed(table, kind)]
    else:
        starts = range(0, len(models), MODELS_ABREAST)
        grids = [_abreast(table, models[start : start + MODELS_ABREAST], kind) for start in starts]
    summary = "\n".join(_summary(table, model, kind) for model in models)
    return "\n\n".join([*grids, summary])


def _detailed(table: pd.DataFrame, kind: Kind) -> str:
    header = ("transform", kind.extra, kind.header, "95 % interval", "drop", "retention %")
    return grid(header, [_detailed_row(row, kind) for _, row in table.iterrows()])


def _detailed_row(row: pd.Series, kind: Kind) -> tuple[str, ...]:
    n = int(row["n"])
    return (
        cell_label(row["transform"], row["severity"]),
        kind.show_extra(row),
        kind.value(row),
        kind.interval(row),
        kind.measure.show(row["drop"], n),
        percent(row["retention"], n),
    )


def _abreast(table: pd.DataFrame, models: list[str], kind: Kind) -> str:
    columns = [_column(table[table["model"] == model], kind) for model in models]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [(label, *(column.get(label, "") for column in columns)) for label in labels]
    return grid((f"{kind.header} (95 % interval)", *models), rows)


def _column(rows: pd.DataFrame, kind: Kind) -> dict[str, str]:
    return {
        cell_label(row["transform"], row["severity"]): f"{kind.value(row)} ({kind.interval(row)})"
        for _, row in rows.iterrows()
    }


def _summary(table: pd.DataFrame, model: str, kind: Kind) -> str:
    rows = table[table["model"] == model]
    clean = rows[rows["transform"] == "identity"]
    parts = [f"{kind.show_clean(row)} (identity)" for _, row in clean.iterrows()]
    ends = extremes(rows, by=kind.measure)
    for word, cells in (("best", ends.best[:1]), ("worst", ends.worst[:1])):
        parts += [f"{word} {_cell(rows, *cell, kind)}" for cell in cells]
    return f"{model}: {', '.join(parts)}"


def _cell(rows: pd.DataFrame, transform: str, severity: int, kind: Kind) -> str:
    row = rows[(rows["transform"] == transform) & (rows["severity"] == severity)].iloc[0]
    return f"{cell_label(transform, severity)} {kind.value(row)}{kind.unit}"


def grid(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """`rows` under `header`, the first column to the left, the others to the right."""
    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, headers=header, disable_numparse=True, colalign=align)
