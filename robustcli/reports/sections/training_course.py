"""How a training went, and what it was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.reports.document import (
    Block,
    Figure,
    Heading,
    Listing,
    Paragraph,
    Table,
    Text,
    cells,
    text,
)
from robustcli.reports.numbers import counted, decimal, duration
from robustcli.reports.sections.mask_opening import how_empty_counts
from robustcli.reports.training import Training
from robustcli.training.record import TrainRecord

_CLASSES = "{:,} classes; each is in every part that was drawn."
_PARTS = {"train": "training", "val": "validation", "test": "held out"}


def course(training: Training, curves: Sequence[Figure]) -> list[Block]:
    """The curves; one sentence before the first epoch has ended."""
    heading = Heading(2, text("How the training went"))
    if training.metrics.empty:
        return [heading, Paragraph(text("No epoch is finished yet."))]
    return [heading, *curves, Listing(_facts(training))]


def _facts(training: Training) -> tuple[Text, ...]:
    record, metrics = training.record, training.metrics
    seconds = float(metrics["seconds"].sum())
    waiting = float((metrics["waiting_share"] * metrics["seconds"]).sum()) / max(seconds, 1e-9)
    epochs = f"{counted(training.epochs, 'epoch')}, {int(metrics['step'].max()):,} steps"
    median = duration(float(metrics["seconds"].median()))
    facts = [
        f"{epochs} in {duration(seconds)} (median epoch {median}, with its validation).",
        f"The network waited for images {decimal(100 * waiting)} % of its training time.",
        f"On {_machine(record)}.",
    ]
    if record.peak_memory_bytes is not None:
        facts.append(f"Peak memory: {decimal(record.peak_memory_bytes / 2**30, 2)} GiB.")
    if record.energy_joules is not None:
        facts.append(f"Energy of the device: {decimal(record.energy_joules / 3600, 2)} Wh.")
    return tuple(text(fact) for fact in facts)


def _machine(record: TrainRecord) -> str:
    """The device; a CPU's name says its threads already."""
    threads = "" if "thread" in record.device else f", {counted(record.threads, 'thread')}"
    shared = f", {record.devices} processes" if record.devices > 1 else ""
    return f"{record.device}{threads}{shared}"


def data(training: Training) -> list[Block]:
    """The parts of the data, and how empty masks count."""
    record = training.record
    masks = record.task == "seg"
    grouped = record.grouping != "image"
    header = (
        "part",
        "images",
        *((training.groups,) if grouped else ()),
        *(("images without foreground",) if masks else ()),
    )
    rows = [
        cells(
            _PARTS[name],
            f"{part.images:,}",
            *((f"{part.groups:,}",) if grouped else ()),
            *((f"{part.empty:,}",) if masks else ()),
        )
        for name in ("train", "val", "test")
        if (part := record.splits.get(name)) is not None
    ]
    table: list[Block] = [Table(cells(*header), tuple(rows))] if rows else []
    told = how_empty_counts(record.grouping) if masks else _CLASSES.format(record.dataset.classes)
    return [Heading(2, text("Data")), *table, Paragraph(text(told))]
