"""The report of an evaluation: page, figures, and the tables that commands print.

Top-1 for classifiers, dice for segmenters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.core.io import to_csv
from robustcli.core.names import TaskName, counted, file_name
from robustcli.data.archives import is_tar, is_zip, list_tar, list_zip
from robustcli.data.dataset import FileRef, contents_digest
from robustcli.data.decode import UnreadableImage, decode
from robustcli.evaluation.record import TransformRecord
from robustcli.evaluation.store import Store
from robustcli.metrics.class_scores import reliability
from robustcli.metrics.severity_scores import breaking_points
from robustcli.reports.cell_photos import read_photos
from robustcli.reports.figures.evaluation_figures import (
    BIN_IMAGES,
    PAIRS_ABREAST,
    draw_bars,
    draw_class_dice,
    draw_differences,
    draw_dots,
    draw_multiples,
    draw_pixel_confusion,
    draw_reliability,
)
from robustcli.reports.figures.images import Case, Tile, draw_contact, draw_panels
from robustcli.reports.findings import ClassFindings, Findings, read_findings
from robustcli.reports.markdown import Picture, from_template
from robustcli.reports.numbers import (
    cell_label,
    decimal,
    fraction,
    is_missing,
    percent,
    percent_range,
    some_of,
)
from robustcli.reports.pages import Page, grid, in_ascii, to_json
from robustcli.reports.scoring import (
    DICE,
    TOP1,
    Extremes,
    Measure,
    best_and_worst,
    extremes,
)
from robustcli.reports.statistics import (
    CLEAN_CELL,
    Anchor,
    ClassifierStatistics,
    Statistics,
    statistics_json,
)
from robustcli.tasks.record import (
    DatasetRecord,
    MaskPreprocessingRecord,
    ModelRecord,
    Panel,
    read_panels,
)
from robustcli.transforms.base import Cell

_TEMPLATES = {"cls": "classification", "seg": "segmentation"}


def evaluation_report(run: Path, out: Path | None = None) -> Page:
    """The page of the evaluation in `run`; draws its figures into `out`, by default `run`.

    Raises:
        UsageError: The run does not exist or cannot be read.
    """
    findings = read_findings(run, out)
    gallery = draw_gallery(findings)
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


# The figures, drawn into `RUN/figures/` if the run has data for them.


_FOLDER = "figures"


@dataclass(frozen=True)
class Gallery:
    """The figures of an evaluation; empty tuples for kinds without figures."""

    bars: tuple[Picture, ...] = ()
    overview: tuple[Picture, ...] = ()
    multiples: tuple[Picture, ...] = ()
    contact: tuple[Picture, ...] = ()
    cases: tuple[Picture, ...] = ()
    classes: tuple[Picture, ...] = ()
    differences: tuple[Picture, ...] = ()
    reliability: tuple[Picture, ...] = ()
    hard_photos: tuple[Picture, ...] = ()
    no_hard_photos: str = ""
    """Why the figure of the hardest images is missing; empty if it exists or does not apply."""


def draw_gallery(findings: Findings) -> Gallery:
    """Draws all figures for which the run has data."""
    measure = findings.scoring.measure
    measured = findings.table[findings.table[measure.column].notna()]
    graded = _graded(measured)
    cases = (case_figures(findings, m, findings.out, m.name) for m in findings.models)
    photos, no_photos = _hard_photos(findings)
    return Gallery(
        _bars(findings.out, measured, measure),
        _overview(findings.out, measured[~graded], measure),
        _multiples(findings.out, measured, measured[graded], measure),
        _contact(findings),
        tuple(picture for pictures in cases for picture in pictures),
        _classes(findings),
        _differences(findings, measure),
        _reliability(findings),
        photos,
        no_photos,
    )


# Tiles of the contact sheets: the sample images of the run, with their PSNR.


_ABREAST = 5


@dataclass(frozen=True)
class ContactLines:
    """Tiles by line: single cells together, the severities of each transform on a separate line.

    The clean photo is the first tile and appears once.
    """

    single: list[list[Tile]]
    graded: list[list[Tile]]


def contact_lines(findings: Findings) -> ContactLines:
    """The lines of both contact sheets; both are empty without samples of transformed photos."""
    if not (findings.run / "samples").is_dir():
        return ContactLines([], [])
    single, graded = _split(findings.record.transforms)
    clean = Tile(findings.run / "samples" / "clean.png", "clean", "as it is")
    tiles = [_tile(findings, transform) for transform in single]
    scales = [line for group in graded for line in _in_lines([_tile(findings, t) for t in group])]
    if tiles:
        return ContactLines(_in_lines([clean, *tiles]), scales)
    return ContactLines([], [[clean], *scales] if scales else [])


def _split(
    transforms: list[TransformRecord],
) -> tuple[list[TransformRecord], list[list[TransformRecord]]]:
    groups: dict[str, list[TransformRecord]] = {}
    for transform in transforms:
        if transform.severity:
            groups.setdefault(transform.name, []).append(transform)
    scales = {name: group for name, group in groups.items() if len(group) > 1}
    single = [
        transform
        for transform in transforms
        if transform.name != "identity" and not (transform.severity and transform.name in scales)
    ]
    return single, list(scales.values())


def _in_lines(tiles: list[Tile]) -> list[list[Tile]]:
    return [tiles[start : start + _ABREAST] for start in range(0, len(tiles), _ABREAST)]


def _tile(findings: Findings, transform: TransformRecord) -> Tile:
    name = f"{transform.name}-s{transform.severity}.png"
    note = _psnr(findings, Cell(transform.name, transform.severity))
    return Tile(
        findings.run / "samples" / name,
        transform.name,
        f"severity {transform.severity}, {note}" if transform.severity else note,
    )


def _psnr(findings: Findings, cell: Cell) -> str:
    """The PSNR of the sample image, as text, in the preprocessing of the first model."""
    sample = _sample(findings, cell)
    if sample.empty:
        return "PSNR unknown"
    if not sample["changed"].all():
        return "unchanged"
    value = float(sample["psnr_db"].mean())
    return "PSNR unknown" if is_missing(value) else f"PSNR {decimal(value)} dB"


def _sample(findings: Findings, cell: Cell) -> pd.DataFrame:
    """The image measures of the sample image; no row if it was not measured yet."""
    store, first = Store(findings.run), findings.models[0]
    clean = findings.rows[first.name].get(CLEAN_CELL)
    if clean is None or clean.empty:
        return store.inputs(first.view, cell, first_block=True).head(1)
    shown = findings.scoring.likely_samples(clean)["image_id"].head(1)
    for first_block in (True, False):  # it is nearly always in the first block
        inputs = store.inputs(first.view, cell, first_block=first_block)
        sample = inputs[inputs["image_id"].isin(shown)]
        if len(sample):
            break
    return sample


# The best, median and worst cases of a segmenter, from the files of its evaluation.


def case_figures(
    findings: Findings, model: ModelRecord, into: Path, called: str
) -> tuple[Picture, ...]:
    """Draws the figure of the cases of `model` into `into`/figures; empty if no cases were saved.

    Args:
        findings: An evaluation of segmenters.
        model: One of its models.
        into: The folder of the report.
        called: Name of the model in the report.
    """
    panels = [panel for panel in read_panels(findings.run) if panel.model == model.name]
    dataset = findings.record.dataset
    classes = tuple(zip(dataset.mask_classes, dataset.mask_colours, strict=True))
    cases = [case for p in panels if (case := _case(findings.run, p, _threshold(model), classes))]
    if not cases:
        return ()
    path = f"figures/cases-{file_name(called)}.png"
    draw_panels(cases, into / path)
    decision = (
        "The class of a pixel is the most probable class, and dice is averaged over the classes."
        if classes
        else f"Pixels with a probability of at least {_threshold(model):.3g} are foreground."
    )
    caption = (
        f"Untransformed images of {called} by dice, one image per group with foreground: the "
        f"best, the median and the worst, each with its id. {decision}"
    )
    return (Picture(path, caption),)


def _threshold(model: ModelRecord) -> float:
    assert isinstance(model.preprocessing, MaskPreprocessingRecord)
    return model.preprocessing.threshold


def _case(
    run: Path, panel: Panel, threshold: float, classes: tuple[tuple[str, str], ...]
) -> Case | None:
    """The case of `panel`; None if its images cannot be read."""
    folder = panel.folder(run)
    title = f"{panel.rank} {panel.number}: dice {fraction(panel.dice)}, {panel.image_id}"
    try:
        image = _pixels(folder / "image.png", "RGB")
        if classes:
            indices = [_indices(folder / f"{name}.png") for name in ("truth", "prediction")]
            return Case(title, image, indices[0], indices[1], classes)
        truth = _pixels(folder / "truth.png", "L") > 127
        prediction = _pixels(folder / "prediction.png", "L") / 255 >= threshold
    except OSError:
        return None
    return Case(title, image, truth, prediction)


def _indices(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture)


def _pixels(path: Path, mode: str) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert(mode))


# Single figures with their captions.


_MODELS_DRAWN = 3


def _classes(findings: Findings) -> tuple[Picture, ...]:
    """Figures of the first models: dice by class and transform, and the confusion of classes."""
    if not findings.classes:
        return ()
    pictures: list[Picture] = []
    for model in findings.models[:_MODELS_DRAWN]:
        pictures += class_pictures(findings.classes, model.name, findings.out, model.name)
    return tuple(pictures)


def class_pictures(
    classes: ClassFindings, model: str, into: Path, called: str
) -> tuple[Picture, ...]:
    """The figures of the classes of `model`, drawn into `into`/figures.

    `called` is the name of the model in the report.
    """
    pictures: list[Picture] = []
    cells, confusion = classes.dice_by_cell(model), classes.confusion(model)
    if len(cells) > 1:
        path = f"{_FOLDER}/classes-{file_name(called)}.png"
        draw_class_dice(cells, classes.names, into / path)
        caption = f"Dice of each class of {called} under each transform."
        pictures.append(Picture(path, caption))
    if confusion is not None:
        path = f"{_FOLDER}/confusion-{file_name(called)}.png"
        draw_pixel_confusion(confusion, classes.names, into / path)
        caption = (
            "Untransformed images: shares of the pixels of each true class (a line) that "
            f"{called} assigns to each class (a column), in percent."
        )
        pictures.append(Picture(path, caption))
    return tuple(pictures)


def _differences(findings: Findings, measure: Measure) -> tuple[Picture, ...]:
    pairs = findings.statistics.pairs
    if not pairs:
        return ()
    best = findings.statistics.ranking[0].model if findings.statistics.ranking else None
    # If there are many pairs, those with the best model are drawn.
    order = sorted(pairs, key=lambda pair: best not in pair)[:PAIRS_ABREAST]
    path = f"{_FOLDER}/differences.png"
    names = [model.name for model in findings.models]
    draw_differences({pair: pairs[pair] for pair in order}, names, findings.out / path, measure)
    note = f" Only {len(order)} of {len(pairs)} pairs are drawn." if len(pairs) > len(order) else ""
    means = any(verdict.severity is None for verdict in findings.statistics.verdicts)
    over = ", means over severities for transforms with several severities" if means else ""
    caption = (
        f"Differences of {measure.name} with paired 95 % intervals{over}. Coloured: significant "
        "after Holm's correction, in the colour of the model that is ahead; grey and hollow: not "
        f"significant.{note}"
    )
    return (Picture(path, caption),)


RELIABILITY_CAPTION = (
    "Reliability: the share of right predictions over the confidence, in bins of equal width, "
    f"with 95 % Wilson intervals for bins with at least {BIN_IMAGES} images; larger markers stand "
    "for more images. Dotted: perfect calibration; below it a model is overconfident."
)


def _reliability(findings: Findings) -> tuple[Picture, ...]:
    statistics = findings.statistics
    if not isinstance(statistics, ClassifierStatistics):
        return ()
    rows = statistics.rows
    panels = {
        line.label: {
            model: reliability(cells[line.transform, line.severity])
            for model, cells in rows.items()
        }
        for line in findings.representative_lines
        if all(len(cells[line.transform, line.severity]) for cells in rows.values())
    }
    if not panels:
        return ()
    path = f"{_FOLDER}/reliability.png"
    draw_reliability(panels, findings.out / path)
    return (Picture(path, RELIABILITY_CAPTION),)


def _hard_photos(findings: Findings) -> tuple[tuple[Picture, ...], str]:
    """The contact sheet of the hardest images, or the reason why it is missing."""
    statistics = findings.statistics
    if not isinstance(statistics, ClassifierStatistics) or not statistics.hard_photos:
        return (), ""
    photos = statistics.hard_photos
    clean = next(iter(statistics.rows.values())).get(CLEAN_CELL)
    if clean is None or len(clean) != findings.expected:
        return (), "not all untransformed images have been evaluated yet"
    ids = [*clean["image_id"], *findings.skipped["image_id"]]
    pixels = images_of(findings.record.dataset, ids, [photo.image_id for photo in photos])
    if isinstance(pixels, str):
        return (), pixels
    tiles = [
        Tile(
            pixels[photo.image_id],
            photo.target,
            f"{photo.wrong} of {photo.answers} wrong,\ntaken for {photo.called}",
        )
        for photo in photos
    ]
    path = f"{_FOLDER}/hard_photos.png"
    draw_contact(_in_lines(tiles), findings.out / path)
    caption = (
        "The untransformed images with the most wrong predictions over all models and transforms: "
        "the true class, the number of wrong predictions, and the most frequent wrong class."
    )
    return (Picture(path, caption),), ""


def images_of(
    dataset: DatasetRecord, all_ids: Sequence[str], shown_ids: Sequence[str]
) -> dict[str, NDArray[np.uint8]] | str:
    """The pixels of the images `shown_ids`, or the reason why they are not shown.

    They are shown only if the files of the dataset are unchanged since the run.

    Args:
        dataset: The dataset of a run.
        all_ids: The ids of all its images.
        shown_ids: The ids of the images to return.
    """
    if dataset.contents is None:
        return (
            "the run was made by an older version, which did not record the contents of its images"
        )
    location = Path(dataset.location)
    if is_tar(location) or is_zip(location):
        listing = list_zip if is_zip(location) else list_tar
        try:
            members = {file.relative: file for file in listing(location).files}
        except UsageError:
            members = {}
        files = [members[image_id] for image_id in all_ids if image_id in members]
    else:
        folder = location if location.is_dir() else location.parent
        files = [FileRef(i, folder / i) for i in all_ids if (folder / i).is_file()]
    if len(files) < len(all_ids):
        return f"not all images are at `{dataset.location}` on this machine"
    if contents_digest(files) != dataset.contents:
        return f"the images at `{dataset.location}` are no longer those of the run"
    by_id = {file.relative: file for file in files}
    try:
        return {image_id: decode(by_id[image_id]) for image_id in shown_ids}
    except (OSError, UnreadableImage):
        return f"the images at `{dataset.location}` cannot be read"


def _graded(table: pd.DataFrame) -> pd.Series:
    """Marks rows with a severity above 0 of a transform that has at least two severities."""
    above = table["severity"].where(table["severity"] > 0)
    steps = above.groupby(table["transform"]).transform("nunique")
    return (table["severity"] > 0) & (steps > 1)


def _bars(out: Path, table: pd.DataFrame, measure: Measure) -> tuple[Picture, ...]:
    ends = extremes(table, by=measure)
    if not ends.best:
        return ()
    path = f"{_FOLDER}/best_and_worst.png"
    draw_bars(table, ends, out / path, measure)
    return (Picture(path, _bars_caption(ends, measure)),)


def _bars_caption(ends: Extremes, measure: Measure) -> str:
    sides = [("best", ends.best), *([("worst", ends.worst)] if ends.worst else [])]
    plural = "s" if max(len(ends.best), len(ends.worst)) > 1 else ""
    named = [f"{len(cells)} {word}" if plural else word for word, cells in sides]
    chosen = ""
    if any(severity for _, severity in (*ends.best, *ends.worst)):
        chosen = " A transform with severities is shown at its highest severity."
    return (
        f"The {' and the '.join(named)} transform{plural} by {measure.name} averaged over the "
        f"models, with {measure.interval}.{chosen}"
    )


def _overview(out: Path, table: pd.DataFrame, measure: Measure) -> tuple[Picture, ...]:
    if set(table["transform"]) <= {"identity"}:
        return ()
    path = f"{_FOLDER}/all_transforms.png"
    draw_dots(table, out / path, measure)
    caption = (
        f"{measure.title} per transform with {measure.interval}, sorted by the mean over the "
        f"models; dashed: {measure.clean} of each model."
    )
    return (Picture(path, caption),)


def _multiples(
    out: Path, table: pd.DataFrame, graded: pd.DataFrame, measure: Measure
) -> tuple[Picture, ...]:
    if graded.empty:
        return ()
    path = f"{_FOLDER}/severities.png"
    draw_multiples(graded, table[table["transform"] == "identity"], out / path, measure)
    caption = (
        f"{measure.title} over severity with {measure.interval} (shaded). Dashed: "
        f"{measure.clean}; dotted: half of it, which defines the breaking point."
    )
    return (Picture(path, caption),)


def _contact(findings: Findings) -> tuple[Picture, ...]:
    lines = contact_lines(findings)
    single, graded = lines.single, lines.graded
    return (
        *_sheet(findings.out, "contact_sheet", single, "One photo under each transform"),
        *_sheet(findings.out, "contact_sheet_severities", graded, "The same photo over severity"),
    )


def _sheet(
    out: Path, name: str, lines: Sequence[Sequence[Tile]], subject: str
) -> tuple[Picture, ...]:
    if not lines:
        return ()
    path = f"{_FOLDER}/{name}.png"
    draw_contact(lines, out / path)
    caption = f"{subject}, with the seed of the run and the PSNR measured in the run."
    return (Picture(path, caption),)


# The tables that commands print.


MODELS_ABREAST = 4
"""Most models in one table."""


@dataclass(frozen=True)
class TableLayout:
    """Columns and texts of a task's table.

    Args:
        measure: The score of the table.
        extra: Header of one more column.
        show_extra: Text of that column for a row.
        show_clean: Text of a sentence for the row of the clean images.
    """

    measure: Measure
    extra: str
    show_extra: Callable[[pd.Series], str]
    show_clean: Callable[[pd.Series], str]

    @property
    def header(self) -> str:
        """Header of the score's column."""
        return f"{self.measure.name}{self.measure.suffix}"


def evaluation_table(table: pd.DataFrame, task: TaskName) -> str:
    """A table of transforms x models with intervals, then one line per model, in ASCII.

    One model gets more columns; many models get several tables of at most MODELS_ABREAST.

    Args:
        table: `cell_table.table` of a run.
        task: Task of the run; scores are top-1 in percent for `cls`, dice in [0, 1] for `seg`.
    """
    layout = _LAYOUTS[task]
    models = [str(name) for name in table["model"].unique()]
    if len(models) == 1:
        grids = [_detailed(table, layout)]
    else:
        starts = range(0, len(models), MODELS_ABREAST)
        grids = [
            _side_by_side(table, models[start : start + MODELS_ABREAST], layout) for start in starts
        ]
    summary = "\n".join(_summary(table, model, layout) for model in models)
    return in_ascii("\n\n".join([*grids, summary]))


def _detailed(table: pd.DataFrame, layout: TableLayout) -> str:
    header = ("transform", layout.extra, layout.header, "95 % interval", "drop", "retention %")
    return grid(header, [_detailed_row(row, layout) for _, row in table.iterrows()])


def _detailed_row(row: pd.Series, layout: TableLayout) -> tuple[str, ...]:
    n = int(row["n"])
    return (
        cell_label(row["transform"], row["severity"]),
        layout.show_extra(row),
        layout.measure.value(row),
        layout.measure.value_range(row, "-"),
        layout.measure.show(row["drop"], n),
        percent(row["retention"], n),
    )


def _side_by_side(table: pd.DataFrame, models: list[str], layout: TableLayout) -> str:
    columns = [_column(table[table["model"] == model], layout) for model in models]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [(label, *(column.get(label, "") for column in columns)) for label in labels]
    return grid((f"{layout.header} (95 % interval)", *models), rows)


def _column(rows: pd.DataFrame, layout: TableLayout) -> dict[str, str]:
    return {
        cell_label(row["transform"], row["severity"]): layout.measure.with_range(row)
        for _, row in rows.iterrows()
    }


def _summary(table: pd.DataFrame, model: str, layout: TableLayout) -> str:
    rows = table[table["model"] == model]
    clean = rows[rows["transform"] == "identity"]
    parts = [f"{layout.show_clean(row)} (identity)" for _, row in clean.iterrows()]
    ends = best_and_worst(rows, layout.measure)
    if ends.worst:
        parts.append(f"best: {_cells(rows, ends.best, layout)}")
        parts.append(f"worst: {_cells(rows, ends.worst, layout)}")
    elif ends.best:  # a single transform, or equal ones, are neither best nor worst
        parts.append(_cells(rows, ends.best, layout))
    return f"{model}: {'; '.join(parts)}"


def _cells(rows: pd.DataFrame, cells: list[tuple[str, int]], layout: TableLayout) -> str:
    """The names of transforms with the same score, and the score."""
    transform, severity = cells[0]
    row = rows[(rows["transform"] == transform) & (rows["severity"] == severity)].iloc[0]
    names = some_of([f"{t} at severity {s}" if s else t for t, s in cells])
    return f"{names} ({layout.measure.value(row)}{layout.measure.suffix})"


def evaluation_summary(findings: Findings) -> str:
    """The printed summary of an evaluation: table, verdicts, warnings, and progress if partial."""
    lines = [evaluation_table(findings.table, findings.record.task)]
    lines += statistics_lines(findings.statistics)
    if skipped := findings.record.dataset.images - findings.expected:
        images = counted(findings.record.dataset.images, "image")
        lines.append(f"{skipped:,} of {images} left out of every number; the report lists why.")
    if findings.is_partial:
        lines.append(f"Partial run (status: {findings.record.status}): {findings.progress}.")
    return "\n".join(lines)


def statistics_lines(statistics: Statistics) -> list[str]:
    """One line per pair of models, and one per model that misses its published accuracy."""
    anchors = statistics.anchors if isinstance(statistics, ClassifierStatistics) else []
    missed = [anchor for anchor in anchors if anchor.status == "outside"]
    return [*statistics.sentences, *map(_warning, missed)]


def _warning(anchor: Anchor) -> str:
    n = anchor.n
    return (
        f"WARNING: {anchor.model} has {percent(anchor.top1, n)} % "
        f"({percent_range(anchor.low, anchor.high, n, '-')}) on ImageNet-1K's validation images; "
        f"the published value is {percent(anchor.published, n)} %. Check crop, mean and std, the "
        f"order of classes, and the tag of the weights. Settings of this run: {anchor.settings}."
    )


def _right(row: pd.Series) -> str:
    return f"{row['correct']} of {row['n']}"


_LAYOUTS: Mapping[TaskName, TableLayout] = {
    "cls": TableLayout(TOP1, "correct", _right, _right),
    "seg": TableLayout(
        DICE,
        "IoU",
        lambda row: fraction(row["iou"]),
        lambda row: f"dice {fraction(row['dice'])} on {counted(int(row['n']), 'image')}",
    ),
}
