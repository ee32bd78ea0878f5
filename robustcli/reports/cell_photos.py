"""The sample photos of an evaluation, for each cell (transform and severity) of its tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from robustcli.evaluation.store import Store
from robustcli.metrics.mask_scores import dice
from robustcli.reports.findings import Findings
from robustcli.reports.numbers import cell_label, confidence, fraction
from robustcli.reports.statistics import ClassifierStatistics
from robustcli.tasks.record import SamplePhoto, read_sample_photos
from robustcli.transforms.base import CLEAN, Cell

MOST_PHOTOS = 6
"""Default number of photos per cell in a page."""


@dataclass(frozen=True)
class Answer:
    """The prediction of a model for a photo under a transform.

    Args:
        model: Name of the model.
        words: The prediction as text.
        right: Whether it is correct; None for segmenters, whose score is not binary.
        mask: Path of the predicted mask; None for classifiers.
    """

    model: str
    words: str
    right: bool | None
    mask: Path | None = None


@dataclass(frozen=True)
class Photo:
    """A photo under a transform.

    Args:
        number: Number of the photo from 1, the same under every transform.
        name: The id of the image and its true class.
        path: Path of the image file.
        answers: Predictions of the models that were evaluated on it so far.
    """

    number: int
    name: str
    path: Path
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class PhotoCell:
    """A transform at one severity with its photos; `label` is its name in the tables."""

    label: str
    photos: tuple[Photo, ...]


@dataclass(frozen=True)
class PhotoSheet:
    """The photos of a run.

    Args:
        cells: One per transform and severity; the first is `identity`, with the clean photos.
        models: Names of the run's models.
        images: Number of images of the run.
        stored: Number of photos that the run stores.
        most: Largest number of photos per cell on the page.
        masks: Whether mask outlines are drawn on the photos.
        classes: Name and colour of each class, for masks of several classes.
    """

    cells: tuple[PhotoCell, ...]
    models: tuple[str, ...]
    images: int
    stored: int
    most: int
    masks: bool
    classes: tuple[tuple[str, str], ...] = ()


def read_photos(findings: Findings) -> PhotoSheet | None:
    """The photos of an evaluation; None if the run stores none."""
    sample_photos = _stored_photos(findings)
    if not sample_photos:
        return None
    reader = _Reader(findings)
    order = sorted(findings.record.transforms, key=lambda t: t.name != "identity")
    cells = [
        PhotoCell(
            cell_label(t.name, t.severity),
            tuple(reader.photos(Cell(t.name, t.severity), sample_photos)),
        )
        for t in order
    ]
    if not any(cell.photos for cell in cells):
        return None
    dataset = findings.record.dataset
    return PhotoSheet(
        tuple(cells),
        models=tuple(model.name for model in findings.models),
        images=dataset.images,
        stored=len(sample_photos),
        most=MOST_PHOTOS,
        masks=findings.record.task == "seg",
        classes=tuple(zip(dataset.mask_classes, dataset.mask_colours, strict=True)),
    )


def _stored_photos(findings: Findings) -> list[SamplePhoto]:
    """The sample photos of the run; runs of older versions store only that of the contact sheet."""
    sample_photos = read_sample_photos(findings.run)
    if sample_photos or not (findings.run / "samples").is_dir():
        return sample_photos
    record, store = findings.record, Store(findings.run)
    rows = _block(store, record.models[0].name, CLEAN, 0)
    if len(rows):
        rows = findings.scoring.likely_samples(rows)
    return [SamplePhoto(number=1, image_id=str(name), position=0) for name in rows["image_id"][:1]]


def _block(store: Store, model: str, cell: Cell, block: int) -> pd.DataFrame:
    path = store.prediction_path(model, cell, block)
    if not path.is_file():
        return pd.DataFrame({"image_id": []})
    rows: pd.DataFrame = pq.read_table(path, partitioning=None).to_pandas()
    return rows


class _Reader:
    """Reads the rows of single photos; each block of rows is read only once per cell."""

    def __init__(self, findings: Findings) -> None:
        self.findings, self.store = findings, Store(findings.run)
        statistics = findings.statistics
        self.names: Mapping[int, str] = (
            statistics.class_names if isinstance(statistics, ClassifierStatistics) else {}
        )

    def photos(self, cell: Cell, sample_photos: list[SamplePhoto]) -> Iterator[Photo]:
        """The photos of `cell` whose image file exists."""
        blocks: dict[tuple[str, int], pd.DataFrame] = {}
        for sample in sample_photos:
            path = sample.picture(self.findings.run, cell)
            if not path.is_file():
                continue
            answers, truth = [], ""
            for model in self.findings.models:
                block = sample.position // self.findings.record.block_size
                if (model.name, block) not in blocks:
                    blocks[model.name, block] = _block(self.store, model.name, cell, block)
                rows = blocks[model.name, block]
                row = rows[rows["image_id"] == sample.image_id]
                if len(row):
                    answers.append(self._answer(model.name, sample, cell, row))
                    truth = self._truth(row.iloc[0])
            name = f"Photo {sample.number}: {sample.image_id}{truth}"
            yield Photo(sample.number, name, path, tuple(answers))

    def _truth(self, row: Any) -> str:
        return f", {self.names[int(row['target'])]}" if "target" in row else ""

    def _answer(self, model: str, sample: SamplePhoto, cell: Cell, row: pd.DataFrame) -> Answer:
        first = row.iloc[0]
        if self.findings.record.task == "cls":
            name = self.names[int(first["prediction"])]
            words = f"{name} ({confidence(float(first['probability']))})"
            right = int(first["prediction"]) == int(first["target"])
            if not right:
                words += f"; true class {confidence(float(first['target_probability']))}"
            return Answer(model, words, right)
        mask = sample.mask(self.findings.run, cell, model)
        words = f"dice {fraction(float(dice(row)[0]))}"
        return Answer(model, words, None, mask if mask.is_file() else None)
