"""The report of an evaluation of segmenters, and the sections on masks that trainings share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from robustcli.nnunet.normalisation import NnUNetInference
from robustcli.reports.document import (
    Block,
    Figure,
    Heading,
    Listing,
    Mono,
    Page,
    Paragraph,
    Strong,
    Table,
    Text,
    cells,
    marked,
    page_of,
    text,
)
from robustcli.reports.evaluation_sections import (
    about_models,
    about_progress,
    best_and_worst,
    bold_note,
    breaking,
    cost,
    demonstration,
    drops,
    images,
    model_table,
    parameters,
    repeating,
    subset,
    title,
    value_table,
)
from robustcli.reports.findings import Findings, read_findings
from robustcli.reports.gallery import Gallery, case_figures, draw_gallery
from robustcli.reports.measure import DICE
from robustcli.reports.numbers import (
    cell_label,
    counted,
    decimal,
    fraction,
    fraction_range,
)
from robustcli.reports.relaxed import MEASURES, relaxed_note, relaxed_source
from robustcli.tasks.record import MaskPreprocessingRecord, ModelRecord

# Single cases as pictures.


def cases(figures: Sequence[Figure]) -> list[Block]:
    """The section; one sentence where no pictures were kept."""
    heading = Heading(2, text("Best, median and worst cases"))
    if figures:
        return [heading, *figures]
    return [heading, Paragraph(text("None: the run holds no pictures of untransformed images."))]


# The numbers of segmenters: dice, IoU and the rest per transform and model.


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


# The head of a segmenter's report: what was measured, what limits it, how masks are counted.


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


# What the numbers of segmenters rest on: images, models, transforms, and the command.


_PARTS = {
    None: "all images",
    "all": "all images",
    "train": "the part that was trained on",
    "val": "the part that chose the epoch",
    "test": "the part that was held out",
}


def mask_settings(findings: Findings) -> list[Block]:
    """The assumptions, then the models, the versions and how to repeat the run."""
    record = findings.record
    return [
        Heading(2, text("Assumptions and settings")),
        Listing(_choices(findings)),
        *parameters(record.transforms),
        Heading(2, text("Models")),
        model_table(findings.models),
        _input_table(findings.models),
        *repeating(record.command, record.versions, record.device),
    ]


def _choices(findings: Findings) -> tuple[Text, ...]:
    record, dataset = findings.record, findings.record.dataset
    counts = f"; {dataset.images:,} of {dataset.images_available:,} images."
    group = grouping(findings)
    return (
        text("Images: ", Mono(dataset.name), " at ", Mono(dataset.location), counts),
        marked(f"Part of the data: {_PARTS[record.split]}. Subset: {dataset.subset or 'none'}."),
        text(f"A group is one {group}: dice is pooled within it, intervals resample whole groups."),
        text("Digest of the image list: ", Mono(dataset.digest), "."),
        text("Transforms act on the decoded image, at its own size."),
        text(f"Seed: {record.seed}. Precision: {record.precision}."),
        *relaxed_source(dataset.tolerance),
    )


def _input_table(models: list[ModelRecord]) -> Table:
    header = ("model", "window", "channels", "foreground from", "overlap of windows")
    rows = [
        (text(Mono(model.name)), *cells(*_input(steps)))
        for model in models
        if isinstance(steps := model.preprocessing, MaskPreprocessingRecord)
    ]
    return Table(cells(*header), tuple(rows), left=len(header))


def _input(steps: MaskPreprocessingRecord) -> tuple[str, ...]:
    window = f"{steps.window} px" if steps.window else "none: the whole image"
    return (
        window,
        steps.channels if steps.nnunet is None else f"{steps.channels}, {_as_nnunet(steps.nnunet)}",
        f"probability {steps.threshold:.4g}",
        f"{100 * steps.overlap:.0f} %",
    )


def _as_nnunet(how: NnUNetInference) -> str:
    schemes = ", ".join(dict.fromkeys(channel.scheme for channel in how.channels))
    flips = f", {2 ** len(how.mirror_axes)} flips averaged" if how.mirror_axes else ""
    return f"normalised as nnU-Net does ({schemes}){flips}"


# The report of an evaluation of segmenters.


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
