"""The numbers of segmenters: dice, IoU and the rest per transform and model."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from robustcli.reports.document import Block, Heading, Mono, Paragraph, Table, Text, cells, text
from robustcli.reports.findings import Findings
from robustcli.reports.gallery import Gallery
from robustcli.reports.measure import DICE
from robustcli.reports.numbers import cell_label, decimal, fraction, fraction_range
from robustcli.reports.sections.comparison import (
    best_and_worst,
    bold_note,
    drops,
    value_table,
)
from robustcli.reports.sections.relaxed import MEASURES, relaxed_note

IOU = replace(DICE, column="iou", name="IoU")
DETAILS = (
    *("dice per image", "its 95 % interval", "with foreground", "precision", "recall"),
    *("95 % Hausdorff px", "boundary dice"),
)


def masks(findings: Findings, gallery: Gallery) -> list[Block]:
    """The best and the worst, then every transform, as pictures and as tables."""
    only_clean = set(findings.table["transform"]) <= {"identity"}
    return [
        *([] if only_clean else best_and_worst(findings, gallery, DICE)),
        Heading(2, text("Clean images" if only_clean else "All transforms")),
        *gallery.overview,
        Heading(3, text("Dice, with its 95 % interval")),
        value_table(findings, DICE),
        *bold_note(findings),
        *([] if only_clean else drops(findings, DICE)),
        Heading(3, text("IoU, with its 95 % interval")),
        value_table(findings, IOU),
        *_relaxed(findings),
        Heading(3, text("Single images, precision and recall, borders")),
        Paragraph(text(DETAILS_NOTE)),
        _detail_table(findings),
    ]


def _relaxed(findings: Findings) -> list[Block]:
    """Both relaxed numbers of every transform; nothing for data without a tolerance."""
    tolerance = findings.record.dataset.tolerance
    if tolerance is None:
        return []
    title = "Relaxed precision and recall, with their 95 % intervals"
    blocks: list[Block] = [Heading(3, text(title)), *relaxed_note(tolerance)]
    for measure in MEASURES:
        blocks += [Paragraph(text(f"{measure.title}:")), value_table(findings, measure)]
    return blocks


DETAILS_NOTE = (
    "Dice per image is the mean over images; “with foreground” is the same over images that have "
    "any. Precision and recall are of all pixels together. The 95 % Hausdorff distance (median, in "
    "pixels; lower is better) and the boundary dice (mean, at 2 pixels) are over images in which "
    "both the true and the predicted mask hold something."
)


def _detail_table(findings: Findings) -> Table:
    several = len(findings.models) > 1
    header = ("transform", *(("model",) if several else ()), *DETAILS)
    # The lines of one transform together, transforms in the order of the run.
    groups = findings.table.groupby(["transform", "severity"], sort=False)
    rows = [
        (
            text(Mono(cell_label(row["transform"], row["severity"]))),
            *((text(Mono(str(row["model"]))),) if several else ()),
            *details(row),
        )
        for _, lines in groups
        for _, row in lines.iterrows()
    ]
    return Table(cells(*header), tuple(rows), left=1 + several)


def details(row: pd.Series) -> tuple[Text, ...]:
    """The cells under DETAILS of a line with `metrics.SEG_COLUMNS`."""
    return cells(
        fraction(row["dice_image"]),
        fraction_range(row["dice_image_low"], row["dice_image_high"]),
        *(fraction(row[name]) for name in ("dice_foreground", "precision", "recall")),
        decimal(row["hd95"]),
        fraction(row["boundary_dice"]),
    )
