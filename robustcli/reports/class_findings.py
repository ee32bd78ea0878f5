"""Scores and confusions of each class, for masks of several classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.metrics.intervals import Bootstrap
from robustcli.metrics.mask_scores import (
    MaskScores,
    any_class_rows,
    class_dice,
    class_rows,
    mask_scores,
    pixel_confusion,
)
from robustcli.metrics.verdicts import ModelRows
from robustcli.reports.measure import DICE, IOU
from robustcli.reports.numbers import MISSING, decimal, fraction, thousands, with_range
from robustcli.reports.statistics import CLEAN_CELL
from robustcli.tasks.record import DatasetRecord

ANY = "any class"
"""Name of the union of all classes, against the background."""
_SCORES = tuple(field.name for field in fields(MaskScores) if not field.name.startswith("relaxed_"))
_CLASS_TABLE_COLUMNS = (
    "model",
    "transform",
    "severity",
    "class",
    "name",
    "pixels",
    "images",
    *_SCORES,
)
"""Columns of `classes.csv`, which has a row per model, cell and class.

`class` is 0 for the union of all classes.
"""


@dataclass(frozen=True)
class ClassLine:
    """Scores of one class for one model and cell.

    Args:
        model: The model.
        transform: The transform.
        severity: Its severity.
        number: Index of the class, from 1; 0 for the union of all classes.
        name: Name of the class.
        pixels: Number of true pixels of the class in all images.
        images: Number of images that contain the class.
        scores: Scores of the class against all other pixels.
    """

    model: str
    transform: str
    severity: int
    number: int
    name: str
    pixels: int
    images: int
    scores: MaskScores

    @property
    def dice(self) -> str:
        """The dice with its interval, as text."""
        scores = self.scores
        return with_range(scores.dice, scores.dice_low, scores.dice_high)

    @property
    def iou(self) -> str:
        """The IoU with its interval, as text."""
        scores = self.scores
        return with_range(scores.iou, scores.iou_low, scores.iou_high)

    @property
    def cells(self) -> list[str]:
        """The table cells that follow the name of the class."""
        scores = self.scores
        return [
            thousands(self.pixels),
            thousands(self.images),
            self.dice,
            self.iou,
            fraction(scores.dice_foreground),
            fraction(scores.precision),
            fraction(scores.recall),
            decimal(scores.hd95),
            fraction(scores.boundary_dice),
        ]


@dataclass(frozen=True)
class WorstClass:
    """The class with the lowest dice in a cell; `clean` is its dice on the clean images."""

    name: str
    dice: float
    clean: float | None

    @property
    def words(self) -> str:
        """The class with its dice, as text of a table cell."""
        clean = MISSING if self.clean is None else fraction(self.clean)
        return f"{self.name}: {fraction(self.dice)} (clean {clean})"


@dataclass(frozen=True)
class ClassFindings:
    """The classes of an evaluation; empty (false) if masks only have foreground and background.

    Args:
        names: Names of the classes 1 to K.
        colours: Colour of each class in the figures, `#rrggbb`.
        rows: Rows of the evaluation, by model and cell.
        seed: Seed of the bootstrap.
    """

    names: tuple[str, ...]
    colours: list[str]
    rows: ModelRows
    seed: int

    @classmethod
    def of(cls, dataset: DatasetRecord, rows: ModelRows, seed: int) -> ClassFindings:
        """The classes of an evaluation of `dataset` with these rows."""
        return cls(dataset.mask_classes, dataset.mask_colours, rows, seed)

    def __bool__(self) -> bool:
        return bool(self.names)

    def clean(self, model: str) -> list[ClassLine]:
        """Scores of `model` on clean images: one per class, then the union of all classes.

        Empty before the clean images are evaluated.
        """
        rows = self.rows[model].get(CLEAN_CELL)
        return [] if rows is None or rows.empty else list(self._lines(model, CLEAN_CELL, rows))

    def worst(self, model: str, cell: tuple[str, int]) -> WorstClass | None:
        """The class with the lowest dice of `model` in `cell`; None without rows."""
        rows, clean = self.rows[model].get(cell), self.rows[model].get(CLEAN_CELL)
        if rows is None or rows.empty:
            return None
        dice = class_dice(rows)
        place = int(dice.argmin())
        known = None if clean is None or clean.empty else float(class_dice(clean)[place])
        return WorstClass(self.names[place], float(dice[place]), known)

    def dice_by_cell(self, model: str) -> dict[tuple[str, int], NDArray[np.float64]]:
        """The dice of each class, for each cell of `model` that has rows."""
        cells = self.rows[model].items()
        return {cell: class_dice(rows) for cell, rows in cells if not rows.empty}

    def confusion(self, model: str) -> NDArray[np.int64] | None:
        """Confusion matrix of the clean images in pixels: rows are true, columns predicted classes.

        Background is the first class. None without rows.
        """
        rows = self.rows[model].get(CLEAN_CELL)
        return None if rows is None or rows.empty else pixel_confusion(rows)

    @property
    def absent(self) -> list[str]:
        """Classes without a pixel in the clean images.

        The dice of such a class is 1 if it is not predicted either.
        """
        lines = next((lines for m in self.rows if (lines := self.clean(m))), [])
        return [line.name for line in lines if line.number and not line.images]

    def table(self) -> pd.DataFrame:
        """All scores of the classes, a row per model, cell and class."""
        lines = [
            {
                **{name: getattr(line, name) for name in ("model", "transform", "severity")},
                "class": line.number,
                "name": line.name,
                "pixels": line.pixels,
                "images": line.images,
                **{name: value for name, value in asdict(line.scores).items() if name in _SCORES},
            }
            for model, cells in self.rows.items()
            for cell, rows in cells.items()
            if not rows.empty
            for line in self._lines(model, cell, rows)
        ]
        return pd.DataFrame(lines, columns=list(_CLASS_TABLE_COLUMNS))

    def _lines(self, model: str, cell: tuple[str, int], rows: pd.DataFrame) -> Iterator[ClassLine]:
        named = zip((*self.names, ANY), (*class_rows(rows), any_class_rows(rows)), strict=True)
        bootstrap = Bootstrap(self.seed)
        for place, (name, of_class) in enumerate(named, 1):
            true = of_class["tp"] + of_class["fn"]
            yield ClassLine(
                model, *cell, place if place <= len(self.names) else 0, name,
                int(true.sum()), int((true > 0).sum()), mask_scores(of_class, bootstrap),
            )  # fmt: skip


HEADS = (
    *("pixels", "images with it", f"{DICE.name}", f"{IOU.name}", "dice per image with it"),
    *("precision", "recall", "95 % Hausdorff px", "boundary dice"),
)
"""Column headers for `ClassLine.cells`."""
