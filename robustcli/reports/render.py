"""A report from the files of a run: no torch, no images, no network."""

from __future__ import annotations

from pathlib import Path

from robustcli.core.atomic import write_text
from robustcli.reports.document import Document, Mono, Strong
from robustcli.reports.findings import Findings, read_findings
from robustcli.reports.gallery import Gallery, draw_gallery
from robustcli.reports.html_page import to_html
from robustcli.reports.markdown_page import to_markdown
from robustcli.reports.results import write_results
from robustcli.reports.sections.accuracy import accuracy
from robustcli.reports.sections.cost import cost
from robustcli.reports.sections.images import images
from robustcli.reports.sections.opening import opening, title
from robustcli.reports.sections.settings import settings
from robustcli.reports.sections.severity import severity


def render(run: Path) -> Path:
    """Writes results.csv, results.json, figures/, report.html and report.md; the last one's path.

    Rendering the same run again gives the same files.

    Args:
        run: Directory of a run, finished or not.

    Raises:
        UsageError: There is no readable run.
        RunError: A file could not be written.
    """
    findings = read_findings(run)
    write_results(run, findings.table)
    document = compose(findings, draw_gallery(findings))
    write_text(run / "report.html", to_html(document, run))
    write_text(run / "report.md", to_markdown(document))
    return run / "report.md"


def compose(findings: Findings, gallery: Gallery) -> Document:
    """The report as a document, before it becomes Markdown or HTML."""
    plain = "".join(s.text if isinstance(s, Mono | Strong) else s for s in title(findings))
    return Document(
        plain,
        (
            *opening(findings),
            *accuracy(findings, gallery),
            *severity(findings, gallery),
            *images(findings, gallery),
            *cost(findings),
            *settings(findings),
        ),
    )
