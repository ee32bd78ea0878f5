"""The head of a report: what was measured, and everything that limits what it means."""

from __future__ import annotations

from robustcli.reports.document import (
    Block,
    Heading,
    Mono,
    Paragraph,
    Span,
    Strong,
    Text,
    joined,
    text,
)
from robustcli.reports.findings import Findings
from robustcli.reports.numbers import counted
from robustcli.reports.sections.notices import demonstration, subset

MODELS_NAMED = 3


def title(findings: Findings, what: str = "Top-1 accuracy") -> Text:
    """One line: what was measured, models, transforms, images."""
    transforms = {t.name for t in findings.record.transforms} - {"identity"}
    count = len(findings.models)
    named = joined([Mono(model.name) for model in findings.models])
    models = named if count <= MODELS_NAMED else text(counted(count, "model"))
    return text(
        f"{what} of ",
        *models,
        f" under {counted(len(transforms), 'transform')}: " if transforms else " on clean images: ",
        Mono(findings.record.dataset.name),
        f", {counted(findings.n, 'image')}",
    )


def opening(findings: Findings) -> list[Block]:
    """The title, the notices that apply, and how to read the numbers."""
    notices = (
        *demonstration(findings.record.dataset),
        *subset(findings.record.dataset),
        *about_progress(findings),
        *about_models(findings),
    )
    return [Heading(1, title(findings)), *map(Paragraph, notices), Paragraph(_READING)]


_READING = text(
    "Top-1 is in percent, with its 95 % Wilson interval. Drop is clean accuracy minus accuracy "
    "under the transform, in percentage points, on the very same images, with its paired 95 % "
    "interval (Newcombe). Retention is accuracy under the transform over clean "
    "accuracy, in percent. "
    "Every number, unrounded: ",
    Mono("results.csv"),
    ", ",
    Mono("results.json"),
    ".",
)


def about_progress(findings: Findings) -> list[Text]:
    """That something is still to be computed, where it is."""
    if not findings.is_partial:
        return []
    cells = len(findings.table)
    return [
        text(
            Strong("Partial run."),
            f" {findings.progress[0].upper()}{findings.progress[1:]}: "
            f"{len(findings.unfinished):,} of {counted(cells, 'cell')} lack images "
            f"(status: {findings.record.status}). The commands under “How to repeat it” go on.",
        )
    ]


def about_models(findings: Findings) -> list[Text]:
    """That models are untrained, or that they learned from different data."""
    notices: list[Text] = []
    untrained = [Mono(model.name) for model in findings.models if model.untrained]
    if untrained:
        notices.append(
            text(
                Strong("Untrained model."),
                " Random weights, evaluated on request: ",
                *joined(untrained),
                ".",
            )
        )
    if len({model.pretraining for model in findings.models if model.parameters}) > 1:
        kinds: list[Span] = []
        for model in findings.models:
            kinds += [", " if kinds else " ", Mono(model.name), f" ({model.pretraining})"]
        notices.append(
            text(
                Strong("Mixed pretraining."),
                " These models were not trained on the same data, so a difference between them may "
                "come from the data and not from the architecture:",
                *kinds,
                ".",
            )
        )
    return notices
