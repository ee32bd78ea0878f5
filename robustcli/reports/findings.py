"""Findings of an evaluation, read once from the folder of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.evaluation.cell_table import table_and_rows
from robustcli.evaluation.gates import GatesRecord, read_gates
from robustcli.evaluation.published_corruptions import PUBLISHED_PREFIX, counterpart
from robustcli.evaluation.record import (
    PARITY,
    CorruptionParity,
    Costs,
    RunRecord,
    Session,
    Speed,
    costs,
    read_record,
    read_sessions,
    speed,
)
from robustcli.evaluation.store import Store
from robustcli.metrics.intervals import Bootstrap
from robustcli.metrics.mask_scores import (
    MaskScores,
    any_class_rows,
    class_dice,
    class_rows,
    mask_scores_of,
    pixel_confusion,
)
from robustcli.metrics.paired import PairedDifference, class_difference
from robustcli.metrics.severity_scores import (
    BreakingPoint,
    CorruptionError,
    breaking_points,
    corruption_errors,
)
from robustcli.metrics.verdicts import ModelRows
from robustcli.reports.numbers import (
    cell_label,
    decimal,
    fraction,
    is_missing,
    some_of,
    thousands,
    with_range,
)
from robustcli.reports.scoring import (
    DICE,
    IOU,
    Measure,
    Scoring,
    best_and_worst,
    mean_over_transforms,
    representatives,
    scoring_of,
)
from robustcli.reports.statistics import CLEAN_CELL, STATISTICS, Statistics
from robustcli.tasks.record import DatasetRecord, ModelRecord

TableRow = dict[str, Any]
"""A row of an evaluation's table, by column."""
MODELS_NAMED = 3


@dataclass(frozen=True)
class TransformRows:
    """A transform at one severity with the rows of all models, in the order of the run."""

    transform: str
    severity: int
    rows: list[TableRow]

    @property
    def label(self) -> str:
        """Name of the transform with its severity."""
        return cell_label(self.transform, self.severity)

    def of(self, model: str) -> TableRow:
        """The row of `model`."""
        return next(row for row in self.rows if row["model"] == model)

    def highest(self, measure: Measure) -> float | None:
        """The highest score of the models; None if they have different numbers of images.

        The best model is unknown while another one lacks images (in a partial run).
        """
        if len({row["n"] for row in self.rows}) > 1:
            return None
        known = [row[measure.column] for row in self.rows if not is_missing(row[measure.column])]
        return max(known, default=None)


@dataclass(frozen=True)
class ModelEnds:
    """The rows of a model's best and worst transforms, and its clean and mean score.

    Args:
        best: The rows with the highest score; empty without transforms.
        worst: The rows with the lowest score; empty if all transforms have the same score.
        clean: The score on clean images.
        mean: The mean over transforms; of several severities, their mean counts.
        n: Largest number of images in a row.
    """

    best: list[TableRow]
    worst: list[TableRow]
    clean: float | None
    mean: float
    n: int


@dataclass(frozen=True)
class ParityLine:
    """One corruption at one severity for one model: computed here, and the published images.

    Args:
        corruption: Published name of the corruption.
        severity: Severity of both.
        model: The model.
        ours: The row of this program's corruption.
        published: The row of the published images.
        difference: Top-1 on the published images minus that on ours, paired; None without images.
        likeness: Similarity of the two; None if it was not measured.
    """

    corruption: str
    severity: int
    model: str
    ours: TableRow
    published: TableRow
    difference: PairedDifference | None
    likeness: CorruptionParity | None


@dataclass(frozen=True)
class Findings:
    """The results of one evaluation run.

    Args:
        run: Folder of the run.
        record: Its `run.json`.
        table: Its scores (`cell_table.table`).
        rows: The predictions behind the scores, without `top5`.
        sessions: Costs of computing them.
        skipped: The images that could not be read (columns: image_id, reason).
        out: Folder into which figures are drawn.
    """

    run: Path
    record: RunRecord
    table: pd.DataFrame
    rows: ModelRows
    sessions: list[Session]
    skipped: pd.DataFrame
    out: Path

    @property
    def scoring(self) -> Scoring:
        """The scores of the run's task."""
        return scoring_of(self.record.task, self.record.dataset)

    @cached_property
    def statistics(self) -> Statistics:
        """Statistics of the rows in addition to the table."""
        return STATISTICS[self.record.task](self.record, self.rows)

    @cached_property
    def classes(self) -> ClassFindings:
        """Class scores of masks; empty for masks without several classes, and for classifiers."""
        return ClassFindings.of(self.record.dataset, self.rows, self.record.seed)

    @property
    def gates(self) -> GatesRecord | None:
        """The limits that were last checked; None if none were."""
        return read_gates(self.run)

    @property
    def models(self) -> list[ModelRecord]:
        """The models in the order of the run."""
        return self.record.models

    @property
    def named_models(self) -> list[str]:
        """The models' names if they are few enough for a title; else empty."""
        return [model.name for model in self.models if len(self.models) <= MODELS_NAMED]

    @property
    def transforms(self) -> int:
        """Number of transforms without `identity`."""
        return len({transform.name for transform in self.record.transforms} - {"identity"})

    @property
    def expected(self) -> int:
        """Number of images of a finished cell."""
        return self.record.dataset.images - self.skipped["image_id"].nunique()

    @property
    def n(self) -> int:
        """Largest number of images in a cell; it determines the number of shown digits."""
        return int(self.table["n"].max()) if len(self.table) else 0

    @property
    def grouping(self) -> str:
        """Name of a group of images, in the singular."""
        return self.record.grouping or "image"

    @property
    def groups(self) -> int:
        """Largest number of groups of images in a cell, for segmenters."""
        return int(self.table["groups"].max()) if len(self.table) else 0

    @property
    def unfinished(self) -> pd.DataFrame:
        """The rows of `table` with missing images."""
        return self.table[self.table["n"] < self.expected]

    @property
    def missing(self) -> int:
        """Number of missing predictions over the run's models and transforms."""
        return int((self.expected - self.unfinished["n"]).sum())

    @property
    def progress(self) -> str:
        """The number of missing predictions out of all, as text."""
        return f"{self.missing:,} of {self.expected * len(self.table):,} predictions are missing"

    @property
    def is_partial(self) -> bool:
        """Whether the run is incomplete."""
        return self.record.status != "complete" or not self.unfinished.empty

    @property
    def no_cases(self) -> str:
        """Why no best, median and worst cases of masks are shown, as a sentence."""
        clean = self.table[(self.table["transform"] == "identity") & (self.table["n"] > 0)]
        if self.is_partial:
            return "None yet: they are drawn when all images are evaluated."
        if clean["dice_foreground"].isna().all():
            return "None: no image has foreground."
        return "None: the run contains no pictures of untransformed images."

    @property
    def is_mixed(self) -> bool:
        """Whether the trained models were trained on different data."""
        return len({model.pretraining for model in self.models if model.parameters}) > 1

    @property
    def views(self) -> dict[str, str]:
        """Each distinct preprocessing, with the first model that uses it."""
        views: dict[str, str] = {}
        for model in self.models:
            views.setdefault(model.view, model.name)
        return views

    @cached_property
    def lines(self) -> list[TransformRows]:
        """The table by transform and severity, in the order of the run."""
        lines: dict[tuple[str, int], TransformRows] = {}
        for row in records(self.table):
            cell = row["transform"], row["severity"]
            lines.setdefault(cell, TransformRows(*cell, [])).rows.append(row)
        return list(lines.values())

    @cached_property
    def representative_lines(self) -> list[TransformRows]:
        """The lines of clean images and of each transform's complete range or highest severity."""
        shown = representatives(self.table)[["transform", "severity"]].itertuples(index=False)
        cells = {(str(t), int(s)) for t, s in shown} | {("identity", 0)}
        return [line for line in self.lines if (line.transform, line.severity) in cells]

    @property
    def graded(self) -> bool:
        """Whether a transform is represented by its highest severity, without its full range."""
        return any(line.severity > 0 for line in self.representative_lines)

    @cached_property
    def breaking_points(self) -> dict[str, dict[str, BreakingPoint]]:
        """The breaking severity per transform with several severities, and per model."""
        points: dict[str, dict[str, BreakingPoint]] = {}
        for point in breaking_points(self.table):
            points.setdefault(point.transform, {})[point.model] = point
        return points

    @cached_property
    def corruption_errors(self) -> list[CorruptionError]:
        """The corruption errors of ImageNet-C; empty unless all its corruptions were measured.

        Also empty if models choose from fewer classes or images have several true classes, because
        AlexNet's errors do not: both lower the errors of a model.
        """
        families, data = {t.name: t.family for t in self.record.transforms}, self.record.dataset
        if data.answers is not None or data.several_labels:
            return []
        return corruption_errors(self.table, label_space=data.label_space, families=families)

    @cached_property
    def parity(self) -> list[ParityLine]:
        """Our corruptions next to published images of the same name, if the run has both."""
        if all(t.family != "published" for t in self.record.transforms):
            return []
        lines = {(line.transform, line.severity): line for line in self.lines}
        likenesses = {(p.transform, p.severity, p.model): p for p in PARITY.read(self.run)}
        table = []
        for (name, severity), line in lines.items():
            ours = lines.get((counterpart(name), severity))
            if ours is None or not name.startswith(PUBLISHED_PREFIX):
                continue
            for row, published in zip(ours.rows, line.rows, strict=True):
                model = str(published["model"])
                rows = [self.rows[model][t, severity] for t in (ours.transform, name)]
                table.append(ParityLine(
                    name.removeprefix(PUBLISHED_PREFIX), severity, model, row, published,
                    class_difference(*rows), likenesses.get((name, severity, model)),
                ))  # fmt: skip
        return table

    @property
    def speeds(self) -> list[Speed]:
        """The speed of each model."""
        return [speed(self.sessions, model.name) for model in self.models]

    @property
    def costs(self) -> Costs:
        """The costs of the complete run."""
        return costs(self.sessions)

    def of_model(self, name: str) -> pd.DataFrame:
        """The rows of one model, one per transform and severity."""
        return self.table[self.table["model"] == name].reset_index(drop=True)

    def ends(self, model: str, measure: Measure) -> ModelEnds:
        """The best and the worst transforms of a model by `measure`."""
        table = self.of_model(model)
        rows = {(row["transform"], row["severity"]): row for row in records(table)}
        cells = best_and_worst(table, measure)
        clean = table.loc[table["transform"] == "identity", measure.column]
        return ModelEnds(
            [rows[cell] for cell in cells.best],
            [rows[cell] for cell in cells.worst],
            float(clean.iloc[0]) if len(clean) else None,
            mean_over_transforms(table, measure),
            int(table["n"].max()),
        )


def records(table: pd.DataFrame) -> list[TableRow]:
    """The rows of `table`."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def read_findings(run: Path, out: Path | None = None) -> Findings:
    """The findings of the run in folder `run`; figures are drawn into `out`, by default `run`.

    Raises:
        UsageError: The run does not exist or cannot be read.
    """
    record = read_record(run)
    table, rows = table_and_rows(run)
    return Findings(run, record, table, rows, read_sessions(run), Store(run).skipped(), out or run)


# The classes of masks.


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
    """The classes with the lowest dice in a cell; `clean` is their dice on the clean images."""

    names: tuple[str, ...]
    dice: float
    clean: NDArray[np.float64] | None

    @property
    def words(self) -> str:
        """The classes with their dice, as text of a table cell."""
        ends = [None] if self.clean is None else [self.clean.min(), self.clean.max()]
        clean = " to ".join(dict.fromkeys(map(fraction, ends)))
        return f"{some_of(self.names)}: {fraction(self.dice)} (clean {clean})"


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
        return self._clean[model]

    @cached_property
    def _clean(self) -> dict[str, list[ClassLine]]:
        cells = {model: cells.get(CLEAN_CELL) for model, cells in self.rows.items()}
        return {
            model: [] if rows is None or rows.empty else list(self._lines(model, CLEAN_CELL, rows))
            for model, rows in cells.items()
        }

    def worst(self, model: str, cell: tuple[str, int]) -> WorstClass | None:
        """The classes with the lowest dice of `model` in `cell`; None without rows."""
        rows, clean = self.rows[model].get(cell), self.rows[model].get(CLEAN_CELL)
        if rows is None or rows.empty:
            return None
        dice = class_dice(rows)
        lowest = np.flatnonzero(dice == dice.min())
        known = None if clean is None or clean.empty else class_dice(clean)[lowest]
        names = tuple(self.names[place] for place in lowest)
        return WorstClass(names, float(dice.min()), known)

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
            for line in (
                self.clean(model) if cell == CLEAN_CELL else self._lines(model, cell, rows)
            )
        ]
        return pd.DataFrame(lines, columns=list(_CLASS_TABLE_COLUMNS))

    def _lines(self, model: str, cell: tuple[str, int], rows: pd.DataFrame) -> Iterator[ClassLine]:
        frames = [*class_rows(rows), any_class_rows(rows)]
        scores = mask_scores_of(frames, Bootstrap(self.seed))
        named = zip((*self.names, ANY), frames, scores, strict=True)
        for place, (name, of_class, of_scores) in enumerate(named, 1):
            true = of_class["tp"] + of_class["fn"]
            yield ClassLine(
                model, *cell, place if place <= len(self.names) else 0, name,
                int(true.sum()), int((true > 0).sum()), of_scores,
            )  # fmt: skip


HEADS = (
    *("pixels", "images with it", f"{DICE.name}", f"{IOU.name}", "dice per image with it"),
    *("precision", "recall", "95 % Hausdorff px", "boundary dice"),
)
"""Column headers for `ClassLine.cells`."""
