"""The images: what the transforms did to them, and which could not be read."""

from __future__ import annotations

import pandas as pd

from robustcli.reports.document import (
    Block,
    Heading,
    Listing,
    Mono,
    Paragraph,
    Table,
    Text,
    cells,
    text,
)
from robustcli.reports.findings import Findings
from robustcli.reports.gallery import Gallery
from robustcli.reports.numbers import cell_label, counted, decimal, percent

LISTED = 10


def images(findings: Findings, gallery: Gallery) -> list[Block]:
    """The contact sheet, the table of changes and the skipped images."""
    sheet: tuple[Block, ...] = gallery.contact
    if not sheet:
        sheet = (
            Paragraph(text("No contact sheet: the run holds no samples of transformed photos.")),
        )
    return [
        Heading(2, text("What the transforms do")),
        *sheet,
        Paragraph(text(_PSNR_NOTE)),
        _change_table(findings),
        Heading(2, text("Skipped images")),
        *_skipped(findings),
    ]


_PSNR_NOTE = (
    "Unchanged: share of images that the transform left as they were, in percent. PSNR: mean over "
    "the changed images, in dB, against the clean image (an unchanged image has an infinite one)."
)


def _change_table(findings: Findings) -> Table:
    views = _views(findings)
    suffix = {view: f" ({view})" if len(views) > 1 else "" for view in views}
    names = [part + suffix[view] for view in views for part in ("unchanged %", "PSNR dB")]
    columns = [findings.of_model(model) for model in views.values()]
    rows = []
    for index, transform in enumerate(findings.record.transforms):
        values = [value for column in columns for value in _change(column.iloc[index])]
        rows.append((text(Mono(cell_label(transform.name, transform.severity))), *cells(*values)))
    return Table(cells("transform", *names), tuple(rows))


def _views(findings: Findings) -> dict[str, str]:
    """Each way in which models see the images, with the first model that sees them so."""
    views: dict[str, str] = {}
    for model in findings.models:
        views.setdefault(model.view, model.name)
    return views


def _change(row: pd.Series) -> tuple[str, str]:
    return percent(row["unchanged_share"], int(row["n"])), decimal(row["psnr_db"])


def _skipped(findings: Findings) -> list[Block]:
    skipped = findings.skipped
    if skipped.empty:
        return [Paragraph(text("None: every image could be read."))]
    first = skipped.head(LISTED)
    listed = f" The first {len(first)}:" if len(skipped) > LISTED else ""
    intro = (
        f"{counted(len(skipped), 'image')} of {findings.record.dataset.images:,} could not be "
        f"read: left out of every number.{listed}"
    )
    items: tuple[Text, ...] = tuple(
        text(Mono(str(row["image_id"])), f": {row['reason']}") for _, row in first.iterrows()
    )
    return [Paragraph(text(intro)), Listing(items)]
