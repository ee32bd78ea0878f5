"""The report of an evaluation of segmenters."""

from __future__ import annotations

from pathlib import Path

from robustcli.reports.cases import case_figures
from robustcli.reports.findings import read_findings
from robustcli.reports.gallery import draw_gallery
from robustcli.reports.measure import DICE
from robustcli.reports.pages.page import Page, page_of
from robustcli.reports.sections.cases import cases
from robustcli.reports.sections.cost import cost
from robustcli.reports.sections.images import images
from robustcli.reports.sections.mask_opening import mask_opening
from robustcli.reports.sections.mask_settings import mask_settings
from robustcli.reports.sections.masks import masks
from robustcli.reports.sections.opening import title
from robustcli.reports.sections.severity import breaking


def segmentation(run: Path) -> Page:
    """The page of the evaluation in `run`; its figures are drawn.

    Raises:
        UsageError: There is no readable run.
    """
    findings = read_findings(run)
    gallery = draw_gallery(findings, DICE)
    shown = [f for m in findings.models for f in case_figures(findings, m, run, m.name)]
    return page_of(
        findings.table,
        title(findings, "Dice"),
        [
            *mask_opening(findings),
            *masks(findings, gallery),
            *breaking(findings, gallery, DICE, "Dice over severity"),
            *cases(shown),
            *images(findings, gallery),
            *cost(findings),
            *mask_settings(findings),
        ],
    )
