"""The head of a segmenter's report: what was measured, what limits it, how masks are counted."""

from __future__ import annotations

from robustcli.reports.document import Block, Heading, Mono, Paragraph, Strong, Text, text
from robustcli.reports.findings import Findings
from robustcli.reports.numbers import counted
from robustcli.reports.sections.notices import demonstration, subset
from robustcli.reports.sections.opening import about_models, about_progress, title


def mask_opening(findings: Findings) -> list[Block]:
    """The title, the notices that apply, and how to read the numbers."""
    dataset, held_out = findings.record.dataset, findings.record.split == "test"
    notices = (
        *demonstration(dataset),
        *subset(dataset, "Held-out images." if held_out else "Subset."),
        *about_progress(findings),
        *about_models(findings),
        *_about_groups(findings),
    )
    heading = Heading(1, title(findings, "Dice"))
    reading = (_reading(findings), text(how_empty_counts(grouping(findings))))
    return [heading, *map(Paragraph, (*notices, *reading))]


def grouping(findings: Findings) -> str:
    """What a group of the run's images is, in the singular."""
    return findings.record.grouping or "image"


def how_empty_counts(group: str) -> str:
    """How images without foreground enter the numbers."""
    also = "" if group == "image" else f" (and a {group})"
    return (
        f"Empty masks: an image{also} without foreground in which none is predicted has "
        "dice 1 and IoU 1, with any pixel predicted 0; so false alarms count. Numbers marked "
        "“with foreground” leave images without foreground out."
    )


def _about_groups(findings: Findings) -> list[Text]:
    groups = int(findings.table["groups"].max()) if len(findings.table) else 0
    if groups != 1:
        return []
    group = grouping(findings)
    told = f" From one {group} nothing can be said about others, so no interval is given."
    return [text(Strong(f"One {group} only."), told)]


def _reading(findings: Findings) -> Text:
    group = grouping(findings)
    groups = int(findings.table["groups"].max()) if len(findings.table) else 0
    pooled = f"of single {group}s" if group == "image" else f"of the pixels of each {group}"
    return text(
        f"Dice and IoU are fractions: {pooled}, averaged over {counted(groups, group)}, with their "
        f"95 % bootstrap interval over {group}s (10,000 resamples). Drop is the dice of the "
        "untouched images minus that under the transform, on the very same images, with its paired "
        "95 % interval. Retention is dice under the transform over clean dice, in percent. "
        "Transforms that move pixels move the true mask with them; what they bring into view from "
        "outside the image counts as background. Every number, unrounded: ",
        Mono("results.csv"),
        ", ",
        Mono("results.json"),
        ".",
    )
