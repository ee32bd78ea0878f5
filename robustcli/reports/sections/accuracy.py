"""The numbers: accuracy per transform and model, drops, best and worst."""

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
from robustcli.reports.numbers import MISSING, cell_label, percent, percent_range
from robustcli.reports.ranking import extremes, representatives


def accuracy(findings: Findings, gallery: Gallery) -> list[Block]:
    """The best and the worst, then every transform, as pictures and as tables."""
    only_clean = set(findings.table["transform"]) <= {"identity"}
    return [
        *([] if only_clean else _best_and_worst(findings, gallery)),
        Heading(2, text("Clean images" if only_clean else "All transforms")),
        *gallery.overview,
        Heading(3, text("Top-1 accuracy in percent, with its 95 % interval")),
        _top1_table(findings),
        *_bold_note(findings),
        *([] if only_clean else _drops(findings)),
        Heading(3, text("Top-5 accuracy in percent")),
        _grid(findings, findings.table, lambda row: text(percent(row["top5"], int(row["n"])))),
    ]


def _best_and_worst(findings: Findings, gallery: Gallery) -> list[Block]:
    return [Heading(2, text("Best and worst transforms")), _ends(findings), *gallery.bars]


def _drops(findings: Findings) -> list[Block]:
    title = "Drop in percentage points, with its paired 95 % interval; retention in percent"
    return [Heading(3, text(title)), _drop_table(findings)]


def _ends(findings: Findings) -> Table:
    header = ("model", "best transform", "worst transform", "clean", "mean over transforms")
    rows = [_end_row(findings.of_model(model.name), model.name) for model in findings.models]
    return Table(cells(*header), tuple(rows), left=3)


def _end_row(rows: pd.DataFrame, model: str) -> tuple[Text, ...]:
    n = int(rows["n"].max())
    clean = rows.loc[rows["transform"] == "identity", "top1"]
    ends = extremes(rows, most=1)
    return (
        text(Mono(model)),
        _named(rows, ends.best),
        _named(rows, ends.worst),
        text(percent(clean.iloc[0], n) if len(clean) else MISSING),
        text(percent(representatives(rows)["top1"].mean(), n)),
    )


def _named(rows: pd.DataFrame, found: list[tuple[str, int]]) -> Text:
    if not found:
        return text(MISSING)
    transform, severity = found[0]
    row = rows[(rows["transform"] == transform) & (rows["severity"] == severity)].iloc[0]
    return text(Mono(cell_label(transform, severity)), f" {percent(row['top1'], int(row['n']))}")


def _top1_table(findings: Findings) -> Table:
    best = findings.table.groupby(["transform", "severity"])["top1"].transform("max")
    is_best = (findings.table["top1"] == best) & (len(findings.models) > 1)
    table = findings.table.assign(is_best=is_best)

    def cell(row: pd.Series) -> Text:
        number = percent(row["top1"], int(row["n"]))
        interval = percent_range(row["top1_low"], row["top1_high"], int(row["n"]))
        short = f", n = {row['n']:,}" if row["n"] < findings.expected else ""
        if not row["n"]:
            return text("not yet")
        return text(Strong(number) if row["is_best"] else number, f" ({interval}){short}")

    return _grid(findings, table, cell)


def _bold_note(findings: Findings) -> list[Block]:
    if len(findings.models) == 1:
        return []
    note = "Bold: the highest of the line, whether or not the difference is more than chance."
    return [Paragraph(text(note))]


def _drop_table(findings: Findings) -> Table:
    def cell(row: pd.Series) -> Text:
        n = int(row["paired_n"])
        if not n:
            return text("not yet")
        interval = percent_range(row["drop_low"], row["drop_high"], n, " to ")
        return text(f"{percent(row['drop'], n)} ({interval}); {percent(row['retention'], n)}")

    touched = findings.table[findings.table["transform"] != "identity"]
    return _grid(findings, touched, cell)


def _grid(findings: Findings, table: pd.DataFrame, cell: Callable[[pd.Series], Text]) -> Table:
    """A line per transform and severity, a column per model."""
    lines: dict[tuple[str, int], list[Text]] = {}
    for _, row in table.iterrows():
        lines.setdefault((row["transform"], row["severity"]), []).append(cell(row))
    header = (text("transform"), *(text(Mono(model.name)) for model in findings.models))
    rows = [(text(Mono(cell_label(*key))), *columns) for key, columns in lines.items()]
    return Table(header, tuple(rows))
