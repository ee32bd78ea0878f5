"""Reports of evaluations: top-1 for classifiers, dice for segmenters."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from robustcli.metrics.severity_scores import breaking_points
from robustcli.reports.cell_photos import read_photos
from robustcli.reports.console import evaluation_summary
from robustcli.reports.findings import Findings, read_findings
from robustcli.reports.gallery import Gallery, draw_gallery
from robustcli.reports.markdown import from_template
from robustcli.reports.pages import Page, to_csv, to_json
from robustcli.reports.statistics import statistics_json

_TEMPLATES = {"cls": "classification", "seg": "segmentation"}


def evaluation_report(run: Path) -> Page:
    """The page of the evaluation in `run`; draws its figures.

    Raises:
        UsageError: The run does not exist or cannot be read.
    """
    findings = read_findings(run)
    gallery = draw_gallery(findings, findings.scoring.measure)
    return Page(
        findings.table,
        evaluation_text(findings, gallery),
        _files(findings),
        read_photos(findings),
        evaluation_summary(findings),
    )


def _files(findings: Findings) -> dict[str, str]:
    statistics = findings.statistics
    extra_fields: dict[str, object] = {
        "breaking_points": [asdict(point) for point in breaking_points(findings.table)],
        "corruption_errors": {
            "normaliser": "AlexNet's errors on ImageNet-C (Hendrycks and Dietterich 2019)",
            "models": [asdict(error) for error in findings.corruption_errors],
        },
    }
    tables = {name: to_csv(table) for name, table in statistics.tables().items()}
    if findings.classes:
        classes = findings.classes.table()
        tables["classes.csv"] = to_csv(classes)
        extra_fields["classes"] = json.loads(to_json(classes))
    return {"statistics.json": statistics_json(statistics, extra_fields), **tables}


def evaluation_text(findings: Findings, gallery: Gallery | None = None) -> str:
    """The Markdown of the page, with the figures of `gallery`."""
    return from_template(
        _TEMPLATES[findings.record.task],
        findings=findings,
        gallery=gallery or Gallery(),
        measure=findings.scoring.measure,
    )
