"""How strong a transform must be: breaking points, and the corruption errors of ImageNet-C."""

from __future__ import annotations

from robustcli.evaluation.breaking import BreakingPoint, breaking_points
from robustcli.evaluation.corruption import ALEXNET_ERROR, CorruptionError, corruption_errors
from robustcli.reports.document import Block, Heading, Mono, Paragraph, Table, cells, text
from robustcli.reports.findings import Findings
from robustcli.reports.gallery import Gallery
from robustcli.reports.measure import TOP1, Measure
from robustcli.reports.numbers import MISSING, percent


def severity(findings: Findings, gallery: Gallery) -> list[Block]:
    """The section, empty for a run in which no transform has several severities."""
    graded = breaking(findings, gallery, TOP1, "Accuracy over severity")
    return [*graded, *_corruption(findings)] if graded else []


def breaking(findings: Findings, gallery: Gallery, measure: Measure, title: str) -> list[Block]:
    """`measure` over severity and where it breaks; empty where nothing has several severities."""
    points = breaking_points(findings.table)
    if not points:
        return []
    note = (
        "The lowest measured severity at which a model keeps less than half of its "
        f"{measure.clean}; > 5 means: not up to severity 5."
    )
    return [
        Heading(2, text(title)),
        *gallery.multiples,
        Heading(3, text("Breaking points")),
        Paragraph(text(note)),
        _points_table(findings, points),
    ]


def _points_table(findings: Findings, points: list[BreakingPoint]) -> Table:
    told = {(point.transform, point.model): _told(point) for point in points}
    header = (text("transform"), *(text(Mono(model.name)) for model in findings.models))
    rows = [
        (
            text(Mono(transform)),
            *(text(told.get((transform, model.name), MISSING)) for model in findings.models),
        )
        for transform in dict.fromkeys(point.transform for point in points)
    ]
    return Table(header, tuple(rows))


def _told(point: BreakingPoint) -> str:
    return f"> {point.strongest}" if point.severity is None else str(point.severity)


def _corruption(findings: Findings) -> list[Block]:
    errors = corruption_errors(findings.table, findings.record)
    if not errors:
        return []
    note = (
        "Errors over the five severities, relative to those of AlexNet (100), in percent; lower is "
        "better. The relative mCE is the same for the error that the corruptions add to the clean "
        "error. Hendrycks and Dietterich, ICLR 2019."
    )
    return [
        Heading(3, text("ImageNet-C: corruption errors")),
        Paragraph(text(note)),
        _corruption_table(findings.n, errors),
    ]


def _corruption_table(n: int, errors: list[CorruptionError]) -> Table:
    header = (text("corruption"), *(text(Mono(error.model)) for error in errors))
    summary = [
        cells("mCE", *(percent(error.mce, n) for error in errors)),
        cells("relative mCE", *(percent(error.relative_mce, n) for error in errors)),
    ]
    rows = [
        (text(Mono(name)), *cells(*(percent(error.by_corruption[name], n) for error in errors)))
        for name in ALEXNET_ERROR
    ]
    return Table(header, (*summary, *rows))
