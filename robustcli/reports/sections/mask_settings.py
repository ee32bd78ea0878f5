"""What the numbers of segmenters rest on: images, models, transforms, and the command."""

from __future__ import annotations

from robustcli.adapters.nnunet_inference import NnUNetInference
from robustcli.evaluation.record import MaskPreprocessingRecord, ModelRecord
from robustcli.reports.document import (
    Block,
    Heading,
    Listing,
    Mono,
    Table,
    Text,
    cells,
    marked,
    text,
)
from robustcli.reports.findings import Findings
from robustcli.reports.sections.mask_opening import grouping
from robustcli.reports.sections.relaxed import relaxed_source
from robustcli.reports.sections.settings import model_table, parameters, repeating

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
