"""The pictures of a report: which ones a run has, drawn into `RUN/figures/`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from robustcli.reports.contact_sheet import contact_lines
from robustcli.reports.document import Figure
from robustcli.reports.figures.bars import draw_bars
from robustcli.reports.figures.contact import Tile, draw_contact
from robustcli.reports.figures.dots import draw_dots
from robustcli.reports.figures.multiples import draw_multiples
from robustcli.reports.findings import Findings
from robustcli.reports.measure import TOP1, Measure
from robustcli.reports.ranking import Extremes, extremes

FOLDER = "figures"


@dataclass(frozen=True)
class Gallery:
    """The figures of each kind that the run has; an empty tuple where there is nothing to show."""

    bars: tuple[Figure, ...]
    overview: tuple[Figure, ...]
    multiples: tuple[Figure, ...]
    contact: tuple[Figure, ...]


def draw_gallery(findings: Findings, measure: Measure = TOP1) -> Gallery:
    """Draws every picture of `measure` that the run has data for."""
    measured = findings.table[findings.table[measure.column].notna()]
    graded = _graded(measured)
    return Gallery(
        _bars(findings.run, measured, measure),
        _overview(findings.run, measured[~graded], measure),
        _multiples(findings.run, measured, measured[graded], measure),
        _contact(findings),
    )


def _graded(table: pd.DataFrame) -> pd.Series:
    """Which rows belong to a scale: severities above 0 of a transform that has at least two."""
    above = table["severity"].where(table["severity"] > 0)
    steps = above.groupby(table["transform"]).transform("nunique")
    return (table["severity"] > 0) & (steps > 1)


def _bars(run: Path, table: pd.DataFrame, measure: Measure) -> tuple[Figure, ...]:
    ends = extremes(table, by=measure)
    if not ends.best:
        return ()
    path = f"{FOLDER}/best_and_worst.png"
    draw_bars(table, ends, run / path, measure)
    return (Figure(path, _bars_caption(ends, measure)),)


def _bars_caption(ends: Extremes, measure: Measure) -> str:
    worst = f" and the {len(ends.worst)} worst" if ends.worst else ""
    chosen = ""
    if any(severity for _, severity in (*ends.best, *ends.worst)):
        chosen = " A transform with severities is shown at its highest."
    return (
        f"The {len(ends.best)} best{worst} transforms by {measure.name} averaged over the "
        f"models, with {measure.interval}.{chosen}"
    )


def _overview(run: Path, table: pd.DataFrame, measure: Measure) -> tuple[Figure, ...]:
    if set(table["transform"]) <= {"identity"}:
        return ()
    path = f"{FOLDER}/all_transforms.png"
    draw_dots(table, run / path, measure)
    caption = (
        f"{measure.title} per transform with {measure.interval}, sorted by the mean over the "
        f"models; dashed: {measure.clean} of each model."
    )
    return (Figure(path, caption),)


def _multiples(
    run: Path, table: pd.DataFrame, graded: pd.DataFrame, measure: Measure
) -> tuple[Figure, ...]:
    if graded.empty:
        return ()
    path = f"{FOLDER}/severities.png"
    draw_multiples(graded, table[table["transform"] == "identity"], run / path, measure)
    caption = (
        f"{measure.title} over severity with {measure.interval} (shaded). Dashed: {measure.clean}; "
        "dotted: half of it, below which a model counts as broken."
    )
    return (Figure(path, caption),)


def _contact(findings: Findings) -> tuple[Figure, ...]:
    lines = contact_lines(findings)
    single, graded = lines.single, lines.graded
    return (
        *_sheet(findings.run, "contact_sheet", single, "One photo under each transform"),
        *_sheet(findings.run, "contact_sheet_severities", graded, "The same photo over severity"),
    )


def _sheet(
    run: Path, name: str, lines: Sequence[Sequence[Tile]], subject: str
) -> tuple[Figure, ...]:
    if not lines:
        return ()
    path = f"{FOLDER}/{name}.png"
    draw_contact(lines, run / path)
    caption = f"{subject}, with the run's own seed; PSNR as the run measured it."
    return (Figure(path, caption),)
