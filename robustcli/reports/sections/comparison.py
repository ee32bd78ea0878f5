"""Tables of one measure over transforms and models: values, drops, best and worst."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from robustcli.reports.document import (
    Block,
    Heading,
    Mono,
    Paragraph,
    Strong,
    Table,
    Text,
    cells,
    text,
)
from robustcli.reports.findings import Findings
from robustcli.reports.gallery import Gallery
from robustcli.reports.measure import Measure
from robustcli.reports.numbers import EN_DASH, MISSING, cell_label, percent
from robustcli.reports.ranking import extremes, representatives


def best_and_worst(findings: Findings, gallery: Gallery, measure: Measure) -> list[Block]:
    """The heading, a line per model and the bars."""
    header = ("model", "best transform", "worst transform", "clean", "mean over transforms")
    rows = [_end_row(findings.of_model(m.name), m.name, measure) for m in findings.models]
    table = Table(cells(*header), tuple(rows), left=3)
    return [Heading(2, text("Best and worst transforms")), table, *gallery.bars]


def _end_row(rows: pd.DataFrame, model: str, measure: Measure) -> tuple[Text, ...]:
    n = int(rows["n"].max())
    clean = rows.loc[rows["transform"] == "identity", measure.column]
    ends = extremes(rows, most=1, by=measure)
    return (
        text(Mono(model)),
        _named(rows, ends.best, measure),
        _named(rows, ends.worst, measure),
        text(measure.show(clean.iloc[0], n) if len(clean) else MISSING),
        text(measure.show(representatives(rows)[measure.column].mean(), n)),
    )


def _named(rows: pd.DataFrame, found: list[tuple[str, int]], measure: Measure) -> Text:
    if not found:
        return text(MISSING)
    transform, severity = found[0]
    row = rows[(rows["transform"] == transform) & (rows["severity"] == severity)].iloc[0]
    value = measure.show(row[measure.column], int(row["n"]))
    return text(Mono(cell_label(transform, severity)), f" {value}")


def value_table(findings: Findings, measure: Measure) -> Table:
    """A line per cell: the number of each model with its interval, the highest in bold."""
    best = findings.table.groupby(["transform", "severity"])[measure.column].transform("max")
    is_best = (findings.table[measure.column] == best) & (len(findings.models) > 1)
    table = findings.table.assign(is_best=is_best)

    def cell(row: pd.Series) -> Text:
        n = int(row["n"])
        if not n:
            return text("not yet")
        number, interval = value(row, measure), value_range(row, measure)
        short = f", n = {n:,}" if n < findings.expected else ""
        return text(Strong(number) if row["is_best"] else number, f" ({interval}){short}")

    return grid(findings, table, cell)


def value(row: pd.Series, measure: Measure) -> str:
    """The number of `row` as text."""
    return measure.show(row[measure.column], int(row["n"]))


def value_range(row: pd.Series, measure: Measure, to: str = EN_DASH) -> str:
    """The interval of `row` as text."""
    low, high = row[f"{measure.column}_low"], row[f"{measure.column}_high"]
    return measure.show_range(low, high, int(row["n"]), to)


def bold_note(findings: Findings) -> list[Block]:
    """What bold means, where anything is bold."""
    if len(findings.models) == 1:
        return []
    note = "Bold: the highest of the line, whether or not the difference is more than chance."
    return [Paragraph(text(note))]


def drops(findings: Findings, measure: Measure) -> list[Block]:
    """What each transform costs each model, against the same images without it."""
    title = f"Drop in {measure.unit}, with its paired 95 % interval; retention in percent"

    def cell(row: pd.Series) -> Text:
        n = int(row[measure.paired])
        if not n:
            return text("not yet")
        interval = measure.show_range(row["drop_low"], row["drop_high"], n, " to ")
        kept = percent(row["retention"], n)
        return text(f"{measure.show(row['drop'], n)} ({interval}); {kept}")

    touched = findings.table[findings.table["transform"] != "identity"]
    return [Heading(3, text(title)), grid(findings, touched, cell)]


def grid(findings: Findings, table: pd.DataFrame, cell: Callable[[pd.Series], Text]) -> Table:
    """A line per transform and severity, a column per model."""
    lines: dict[tuple[str, int], list[Text]] = {}
    for _, row in table.iterrows():
        lines.setdefault((row["transform"], row["severity"]), []).append(cell(row))
    header = (text("transform"), *(text(Mono(model.name)) for model in findings.models))
    rows = [(text(Mono(cell_label(*key))), *columns) for key, columns in lines.items()]
    return Table(header, tuple(rows))
