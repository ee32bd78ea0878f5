"""The accuracy table of a terminal."""

from __future__ import annotations

import pandas as pd
from tabulate import tabulate

from robustcli.reports.numbers import cell_label, percent, percent_range
from robustcli.reports.ranking import extremes

MODELS_ABREAST = 4


def accuracy_table(table: pd.DataFrame) -> str:
    """Transforms x models: top-1 in percent with its 95 % interval, then one line per model.

    One model gets more columns; many models get several tables of at most MODELS_ABREAST.

    Args:
        table: `metrics.table` of a run.
    """
    models = [str(name) for name in table["model"].unique()]
    if len(models) == 1:
        grids = [_detailed(table)]
    else:
        starts = range(0, len(models), MODELS_ABREAST)
        grids = [_abreast(table, models[start : start + MODELS_ABREAST]) for start in starts]
    return "\n\n".join([*grids, "\n".join(_summary(table, model) for model in models)])


def _detailed(table: pd.DataFrame) -> str:
    header = ("transform", "correct", "top-1 %", "95 % interval", "drop", "retention %")
    return _grid(header, [_detailed_row(row) for _, row in table.iterrows()])


def _detailed_row(row: pd.Series) -> tuple[str, ...]:
    n = int(row["n"])
    return (
        cell_label(row["transform"], row["severity"]),
        f"{row['correct']} of {n}",
        percent(row["top1"], n),
        percent_range(row["top1_low"], row["top1_high"], n, "-"),
        percent(row["drop"], n),
        percent(row["retention"], n),
    )


def _abreast(table: pd.DataFrame, models: list[str]) -> str:
    columns = [_column(table[table["model"] == model]) for model in models]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [(label, *(column.get(label, "") for column in columns)) for label in labels]
    return _grid(("top-1 % (95 % interval)", *models), rows)


def _column(rows: pd.DataFrame) -> dict[str, str]:
    return {cell_label(row["transform"], row["severity"]): _top1(row) for _, row in rows.iterrows()}


def _top1(row: pd.Series) -> str:
    n = int(row["n"])
    interval = percent_range(row["top1_low"], row["top1_high"], n, "-")
    return f"{percent(row['top1'], n)} ({interval})"


def _summary(table: pd.DataFrame, model: str) -> str:
    rows = table[table["model"] == model]
    parts = [
        f"{row['correct']} of {row['n']} (identity)"
        for _, row in rows[rows["transform"] == "identity"].iterrows()
    ]
    ends = extremes(rows)
    for word, cells in (("best", ends.best[:1]), ("worst", ends.worst[:1])):
        parts += [f"{word} {_cell(rows, *cell)}" for cell in cells]
    return f"{model}: {', '.join(parts)}"


def _cell(rows: pd.DataFrame, transform: str, severity: int) -> str:
    row = rows[(rows["transform"] == transform) & (rows["severity"] == severity)].iloc[0]
    return f"{cell_label(transform, severity)} {percent(row['top1'], int(row['n']))} %"


def _grid(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, headers=header, disable_numparse=True, colalign=align)
