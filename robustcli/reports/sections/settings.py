"""What the numbers rest on: settings, models, transform parameters, versions, and the command."""

from __future__ import annotations

import json
from collections.abc import Mapping

from robustcli.evaluation.record import ModelRecord, PreprocessingRecord, TransformRecord
from robustcli.reports.document import (
    Block,
    Code,
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
from robustcli.reports.numbers import cell_label, counted


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
