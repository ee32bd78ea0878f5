"""The numbers of classifiers: accuracy per transform and model, drops, best and worst."""

from __future__ import annotations

from robustcli.reports.document import Block, Heading, text
from robustcli.reports.findings import Findings
from robustcli.reports.gallery import Gallery
from robustcli.reports.measure import TOP1
from robustcli.reports.numbers import percent
from robustcli.reports.sections.comparison import (
    best_and_worst,
    bold_note,
    drops,
    grid,
    value_table,
)


def accuracy(findings: Findings, gallery: Gallery) -> list[Block]:
    """The best and the worst, then every transform, as pictures and as tables."""
    only_clean = set(findings.table["transform"]) <= {"identity"}
    return [
        *([] if only_clean else best_and_worst(findings, gallery, TOP1)),
        Heading(2, text("Clean images" if only_clean else "All transforms")),
        *gallery.overview,
        Heading(3, text("Top-1 accuracy in percent, with its 95 % interval")),
        value_table(findings, TOP1),
        *bold_note(findings),
        *([] if only_clean else drops(findings, TOP1)),
        Heading(3, text("Top-5 accuracy in percent")),
        grid(findings, findings.table, lambda row: text(percent(row["top5"], int(row["n"])))),
    ]
