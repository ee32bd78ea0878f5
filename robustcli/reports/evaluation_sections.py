"""Sections that the reports of classifiers and segmenters share: head, tables, costs, settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pandas as pd

from robustcli.evaluation.record import TransformRecord
from robustcli.evaluation.sessions import Costs, DeviceCost, costs, speed
from robustcli.metrics.severity_scores import (
    ALEXNET_ERROR,
    BreakingPoint,
    CorruptionError,
    breaking_points,
    corruption_errors,
)
from robustcli.reports.document import (
    Block,
    Code,
    Heading,
    Listing,
    Mono,
    Paragraph,
    Span,
    Strong,
    Table,
    Text,
    cells,
    joined,
    marked,
    text,
)
from robustcli.reports.findings import Findings
from robustcli.reports.gallery import Gallery
from robustcli.reports.measure import TOP1, Measure, extremes, representatives
from robustcli.reports.numbers import EN_DASH, MISSING, cell_label, counted, decimal, percent
from robustcli.tasks.record import DatasetRecord, ModelRecord, PreprocessingRecord

# Sentences that limit what a report means, shared by evaluations and trainings.


def demonstration(dataset: DatasetRecord) -> list[Text]:
    """That the images are for trying only, where they are."""
    if not dataset.demonstration:
        return []
    return [
        text(
            Strong("Demonstration set."),
            " ",
            Mono(dataset.name),
            " is there to try the program; compare its numbers with no published ones.",
        )
    ]


def subset(dataset: DatasetRecord, word: str = "Subset.") -> list[Text]:
    """That only a part of the images was used, where it was."""
    if dataset.images >= dataset.images_available:
        return []
    chosen = f" ({dataset.subset})" if dataset.subset else ""
    counts = f" {dataset.images:,} of {dataset.images_available:,} images{chosen}."
    return [text(Strong(word), *marked(counts))]


# The head of a report: what was measured, and everything that limits what it means.


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


# What the numbers rest on: settings, models, transform parameters, versions, and the command.


def settings(findings: Findings) -> list[Block]:
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


def repeating(command: str, versions: Mapping[str, str], device: str) -> list[Block]:
    """The command, and on what it ran."""
    told = [f"{name} {version}" for name, version in sorted(versions.items())]
    return [
        Heading(2, text("How to repeat it")),
        Code(command),
        Paragraph(text(f"Versions: {', '.join(told)}. Device: {device}.")),
    ]


_APPLIED = {
    "original": "on the decoded image, before the model's own resize and crop",
    "crop": "on the image after the model's own resize and crop",
}


def _choices(findings: Findings) -> tuple[Text, ...]:
    record, dataset = findings.record, findings.record.dataset
    return (
        text(
            "Images: ",
            Mono(dataset.name),
            " at ",
            Mono(dataset.location),
            f", {counted(dataset.classes, 'class', 'classes')} of label space ",
            Mono(dataset.label_space),
            f"; {dataset.images:,} of {dataset.images_available:,} images.",
        ),
        text(f"Subset: {dataset.subset or 'none'}."),
        text("Digest of the image list: ", Mono(dataset.digest), "."),
        text(
            f"Transforms act {_APPLIED[record.apply_at]} (",
            Mono(f"--apply-at {record.apply_at}"),
            ").",
        ),
        text(f"Seed: {record.seed}. Precision: {record.precision}."),
    )


def parameters(transforms: list[TransformRecord]) -> list[Block]:
    """What each transform was set to."""
    rows = [_parameter_row(t) for t in transforms if t.family != "identity"]
    if not rows:
        return []
    blocks: list[Block] = [Heading(3, text("Transform parameters"))]
    if any(transform.assumed for transform in transforms):
        note = (
            "Parameters assumed: the paper that names these transforms gives none, so the lines "
            "marked “assumed” hold this program's choice."
        )
        blocks.append(Paragraph(text(note)))
    header = cells("transform", "family", "parameters", "source")
    return [*blocks, Table(header, tuple(rows), left=4)]


def _parameter_row(transform: TransformRecord) -> tuple[Text, ...]:
    pairs = [f"{name}={json.dumps(value)}" for name, value in transform.parameters.items()]
    return (
        text(Mono(cell_label(transform.name, transform.severity))),
        text(transform.family),
        text(Mono(", ".join(pairs))) if pairs else text("none"),
        text("assumed" if transform.assumed else "given"),
    )


def model_table(models: list[ModelRecord]) -> Table:
    """What the models are, so that they can be found again."""
    header = ("model", "built as", "parameters", "pretraining", "scan", "weights", "SHA-256")
    rows = [
        (
            text(Mono(model.name)),
            text(Mono(_built(model))),
            text(f"{model.parameters:,}"),
            text("untrained" if model.untrained else model.pretraining),
            text(model.scan_backend or "none"),
            text(Mono(model.weights)) if model.weights else text("none"),
            text(Mono(model.weights_sha256)) if model.weights_sha256 else text("none"),
        )
        for model in models
    ]
    return Table(cells(*header), tuple(rows), left=len(header))


def _built(model: ModelRecord) -> str:
    arguments = "".join(f", {name}={json.dumps(v)}" for name, v in model.arguments.items())
    return f"{model.builder}{arguments}"


def _input_table(models: list[ModelRecord]) -> Table:
    header = ("model", "resize", "crop", "mode", "interpolation", "mean", "std")
    rows = [(text(Mono(m.name)), *cells(*_preprocessing(m))) for m in models]
    return Table(cells(*header), tuple(rows), left=len(header))


def _preprocessing(model: ModelRecord) -> tuple[str, ...]:
    steps = model.preprocessing
    assert isinstance(steps, PreprocessingRecord)

    def triple(values: tuple[float, ...]) -> str:
        return ", ".join(f"{value:g}" for value in values)

    resize = "none" if steps.resize is None else f"{steps.resize} px"
    sizes = (resize, f"{steps.crop} px", steps.mode)
    return (*sizes, steps.interpolation, triple(steps.mean), triple(steps.std))


# The images: what the transforms did to them, and which could not be read.


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


# What the run cost: images per second, waiting, device.


def cost(findings: Findings) -> list[Block]:
    """The section; one sentence when no session was recorded."""
    heading = Heading(2, text("Speed"))
    if not findings.sessions:
        return [heading, Paragraph(text("No timings were recorded."))]
    return [heading, _speed_table(findings), Listing(_facts(costs(findings.sessions)))]


def _speed_table(findings: Findings) -> Table:
    header = cells("model", "images per second", "images", "seconds in the model")
    speeds = [speed(findings.sessions, model.name) for model in findings.models]
    rows = [
        (
            text(Mono(s.model)),
            *cells(decimal(s.images_per_second), f"{s.images:,}", decimal(s.seconds)),
        )
        for s in speeds
    ]
    return Table(header, tuple(rows))


def _facts(total: Costs) -> tuple[Text, ...]:
    waiting = (
        ""
        if total.waiting_share is None
        else (f"; the models waited for images {decimal(100 * total.waiting_share)} % of it")
    )
    facts = [
        text(f"{counted(total.sessions, 'session')}, {decimal(total.seconds)} s in all{waiting}.")
    ]
    facts += [text(f"On {device}.") for device in total.devices]
    return (*facts, *(_device_facts(total.device) if total.device else ()))


def _device_facts(device: DeviceCost) -> list[Text]:
    facts = [f"Peak device memory: {decimal(device.peak_memory_bytes / 2**30, 2)} GiB."]
    if device.utilisation_percent is not None:
        facts.append(f"Mean device utilisation: {decimal(device.utilisation_percent)} %.")
    if device.energy_joules is not None:
        facts.append(f"Energy of the device: {decimal(device.energy_joules / 3600, 2)} Wh.")
    return [text(fact) for fact in facts]


# Tables of one measure over transforms and models: values, drops, best and worst.


def best_and_worst(findings: Findings, gallery: Gallery, measure: Measure) -> list[Block]:
    """The heading, a line per model and the bars."""
    header = ("model", "best transform", "worst transform", "clean", "mean over transforms")
    rows = [_end_row(findings.of_model(m.name), m.name, measure) for m in findings.models]
    table = Table(cells(*header), tuple(rows), left=3)
    return [Heading(2, text("Best and worst transforms")), table, *gallery.bars]


def _end_row(rows: pd.DataFrame, model: str, measure: Measure) -> tuple[Text, ...]:
    n = int(rows["n"].max())
    clean = rows.loc[rows["transform"] == "identity", measure.column]
    ends = extremes(rows, most=1, by=measure)
    return (
        text(Mono(model)),
        _named(rows, ends.best, measure),
        _named(rows, ends.worst, measure),
        text(measure.show(clean.iloc[0], n) if len(clean) else MISSING),
        text(measure.show(representatives(rows)[measure.column].mean(), n)),
    )


def _named(rows: pd.DataFrame, found: list[tuple[str, int]], measure: Measure) -> Text:
    if not found:
        return text(MISSING)
    transform, severity = found[0]
    row = rows[(rows["transform"] == transform) & (rows["severity"] == severity)].iloc[0]
    value = measure.show(row[measure.column], int(row["n"]))
    return text(Mono(cell_label(transform, severity)), f" {value}")


def value_table(findings: Findings, measure: Measure) -> Table:
    """A line per cell: the number of each model with its interval, the highest in bold."""
    best = findings.table.groupby(["transform", "severity"])[measure.column].transform("max")
    is_best = (findings.table[measure.column] == best) & (len(findings.models) > 1)
    table = findings.table.assign(is_best=is_best)

    def cell(row: pd.Series) -> Text:
        n = int(row["n"])
        if not n:
            return text("not yet")
        number, interval = value(row, measure), value_range(row, measure)
        short = f", n = {n:,}" if n < findings.expected else ""
        return text(Strong(number) if row["is_best"] else number, f" ({interval}){short}")

    return grid(findings, table, cell)


def value(row: pd.Series, measure: Measure) -> str:
    """The number of `row` as text."""
    return measure.show(row[measure.column], int(row["n"]))


def value_range(row: pd.Series, measure: Measure, to: str = EN_DASH) -> str:
    """The interval of `row` as text."""
    low, high = row[f"{measure.column}_low"], row[f"{measure.column}_high"]
    return measure.show_range(low, high, int(row["n"]), to)


def bold_note(findings: Findings) -> list[Block]:
    """What bold means, where anything is bold."""
    if len(findings.models) == 1:
        return []
    note = "Bold: the highest of the line, whether or not the difference is more than chance."
    return [Paragraph(text(note))]


def drops(findings: Findings, measure: Measure) -> list[Block]:
    """What each transform costs each model, against the same images without it."""
    title = f"Drop in {measure.unit}, with its paired 95 % interval; retention in percent"

    def cell(row: pd.Series) -> Text:
        n = int(row[measure.paired])
        if not n:
            return text("not yet")
        interval = measure.show_range(row["drop_low"], row["drop_high"], n, " to ")
        kept = percent(row["retention"], n)
        return text(f"{measure.show(row['drop'], n)} ({interval}); {kept}")

    touched = findings.table[findings.table["transform"] != "identity"]
    return [Heading(3, text(title)), grid(findings, touched, cell)]


def grid(findings: Findings, table: pd.DataFrame, cell: Callable[[pd.Series], Text]) -> Table:
    """A line per transform and severity, a column per model."""
    lines: dict[tuple[str, int], list[Text]] = {}
    for _, row in table.iterrows():
        lines.setdefault((row["transform"], row["severity"]), []).append(cell(row))
    header = (text("transform"), *(text(Mono(model.name)) for model in findings.models))
    rows = [(text(Mono(cell_label(*key))), *columns) for key, columns in lines.items()]
    return Table(header, tuple(rows))


# How strong a transform must be: breaking points, and the corruption errors of ImageNet-C.


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
    errors = corruption_errors(
        findings.table,
        label_space=findings.record.dataset.label_space,
        families={t.name: t.family for t in findings.record.transforms},
    )
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
