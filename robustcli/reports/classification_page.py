"""The report of an evaluation of classifiers."""

from __future__ import annotations

from pathlib import Path

from robustcli.reports.document import Block, Heading, Page, page_of, text
from robustcli.reports.evaluation_sections import (
    best_and_worst,
    bold_note,
    cost,
    drops,
    grid,
    images,
    opening,
    settings,
    severity,
    title,
    value_table,
)
from robustcli.reports.findings import Findings, read_findings
from robustcli.reports.gallery import Gallery, draw_gallery
from robustcli.reports.measure import TOP1
from robustcli.reports.numbers import percent

# The numbers of classifiers: accuracy per transform and model, drops, best and worst.


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


def classification(run: Path) -> Page:
    """The page of the evaluation in `run`; its figures are drawn.

    Raises:
        UsageError: There is no readable run.
    """
    findings = read_findings(run)
    gallery = draw_gallery(findings)
    return page_of(
        findings.table,
        title(findings),
        [
            *opening(findings),
            *accuracy(findings, gallery),
            *severity(findings, gallery),
            *images(findings, gallery),
            *cost(findings),
            *settings(findings),
        ],
    )
