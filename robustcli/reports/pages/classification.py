"""The report of an evaluation of classifiers."""

from __future__ import annotations

from pathlib import Path

from robustcli.reports.findings import read_findings
from robustcli.reports.gallery import draw_gallery
from robustcli.reports.pages.page import Page, page_of
from robustcli.reports.sections.accuracy import accuracy
from robustcli.reports.sections.cost import cost
from robustcli.reports.sections.images import images
from robustcli.reports.sections.opening import opening, title
from robustcli.reports.sections.settings import settings
from robustcli.reports.sections.severity import severity


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
