"""Sentences that limit what a report means, shared by evaluations and trainings."""

from __future__ import annotations

from robustcli.evaluation.record import DatasetRecord
from robustcli.reports.document import Mono, Strong, Text, marked, text


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
