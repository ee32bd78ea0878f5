"""The results of trainings: their files, and scores computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from robustcli.core.io import read_csv, reading
from robustcli.core.names import counted
from robustcli.core.rundir import has_record
from robustcli.metrics.class_scores import Calibration, MacroF1
from robustcli.metrics.intervals import SHARES, Bootstrap, FloatArray
from robustcli.metrics.mask_scores import CleanMaskComparison, compare_masks_with_clean
from robustcli.reports.findings import ClassFindings, Findings, read_findings
from robustcli.reports.numbers import MISSING, fraction_range, with_range
from robustcli.reports.scoring import SCORINGS, Scoring, scoring_of
from robustcli.reports.statistics import CLEAN_CELL, ClassifierStatistics
from robustcli.training.record import ADDED, PAPER, TrainRecord, read_train_record


@dataclass(frozen=True)
class HeldOutResults:
    """One model on the held-out images: its scores and their rows.

    Args:
        findings: The evaluation.
        numbers: The row of its table (`metrics.columns.TABLE_COLUMNS` of its task).
        rows: A row per image (`metrics.columns.ROW_SCHEMAS` of its task).
    """

    findings: Findings
    numbers: pd.Series
    rows: pd.DataFrame

    @property
    def groups(self) -> int:
        """Number of independent units among the images; for classifiers each image is one."""
        return int(self.numbers.get("groups", self.numbers["n"]))


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest value of a quantity over `epochs` epochs."""

    median: float
    low: float
    high: float
    epochs: int


@dataclass(frozen=True)
class TrainingFindings:
    """The results of one training run.

    Args:
        run: Folder of the run.
        record: Its `run.json`.
        metrics: A row per finished epoch (columns: `record.Validation.metrics`).
        test: The chosen weights on the held-out images; None until they are evaluated.
        baseline: Otsu's threshold on the same images; None until it is evaluated.
        paper: Input of the paper's scores (columns: PAPER); protocol `paper` only.
        weights_bytes: Size of the chosen weights' file.
        out: Folder into which figures are drawn.
    """

    run: Path
    record: TrainRecord
    metrics: pd.DataFrame
    test: HeldOutResults | None
    baseline: HeldOutResults | None
    paper: pd.DataFrame | None
    weights_bytes: int | None
    out: Path

    @property
    def scoring(self) -> Scoring:
        """The scores of the task."""
        return scoring_of(self.record.task, self.record.dataset)

    @property
    def baseline_numbers(self) -> Mapping[str, Any] | pd.Series | None:
        """The scores of the baseline: Otsu's threshold, or always the most frequent class.

        None until the held-out images are evaluated.
        """
        return self.scoring.baseline_numbers(
            None if self.test is None else self.test.rows,
            None if self.baseline is None else self.baseline.numbers,
        )

    @property
    def mask_classes(self) -> ClassFindings:
        """The class scores of masks; empty for masks with foreground and background only."""
        if self.test is None:
            return ClassFindings.of(self.record.dataset, {}, self.record.seed)
        return self.test.findings.classes

    @property
    def is_partial(self) -> bool:
        """Whether the training is incomplete."""
        return self.record.status != "complete"

    @property
    def evaluated_so_far(self) -> str:
        """The evaluated part of the held-out images, as text; empty if it is all or nothing."""
        if self.test is None or int(self.test.numbers["n"]) >= self.test.findings.expected:
            return ""
        n, images = int(self.test.numbers["n"]), self.test.findings.expected
        return f"{n:,} of {counted(images, 'held-out image')}"

    @property
    def seconds(self) -> float | None:
        """Time of all epochs with their validation; None before the first has ended."""
        return float(self.metrics["seconds"].sum()) if len(self.metrics) else None

    @property
    def median_seconds(self) -> float:
        """Median time of an epoch with its validation."""
        return float(self.metrics["seconds"].median())

    @property
    def epoch_seconds(self) -> Spread | None:
        """Time of an epoch with its validation; None before the first has ended."""
        return _spread(self.metrics["seconds"])

    @property
    def train_seconds(self) -> Spread | None:
        """Time of an epoch's training steps, without validation; None if not recorded."""
        return _spread(self.metrics["seconds"] - self.metrics["val_seconds"])

    @property
    def val_seconds(self) -> Spread | None:
        """Time of an epoch's validation; None if not recorded."""
        return _spread(self.metrics["val_seconds"])

    @property
    def images_per_epoch(self) -> int | None:
        """Training images per epoch, or patches; None before the images are counted."""
        recipe, part = self.record.recipe, self.record.splits.get("train")
        if recipe.patches is not None:
            return recipe.patches.iterations * recipe.batch_size
        if part is None:
            return None
        return min(recipe.images_per_epoch or part.images, part.images)

    @property
    def images_per_second(self) -> float | None:
        """Training images per epoch divided by the median time of an epoch's training steps.

        None if not recorded.
        """
        images, spread = self.images_per_epoch, self.train_seconds
        return images / spread.median if images and spread and spread.median > 0 else None

    def validated(self, epoch: int | None) -> dict[str, float]:
        """The validation scores of an epoch by column; unrecorded scores are left out."""
        lines = self.metrics[self.metrics["epoch"] == epoch]
        columns = self.scoring.validation.columns
        values = {} if lines.empty else lines.iloc[-1][list(columns)].to_dict()
        return {str(name): float(value) for name, value in values.items() if pd.notna(value)}

    @property
    def last_epoch(self) -> int | None:
        """The number of the last finished epoch; None before the first has ended."""
        return int(self.metrics["epoch"].max()) if self.epochs else None

    @property
    def classes(self) -> ClassifierStatistics | None:
        """Class and calibration statistics of a classifier; None until it is evaluated."""
        statistics = None if self.test is None else self.test.findings.statistics
        return statistics if isinstance(statistics, ClassifierStatistics) else None

    @property
    def macro_f1(self) -> MacroF1 | None:
        """Macro F1 of a classifier on its held-out images; None until it is evaluated."""
        return None if self.classes is None else next(iter(self.classes.macro_f1.values()), None)

    @property
    def calibration(self) -> Calibration | None:
        """Calibration of a classifier on its held-out images; None until it is evaluated."""
        return None if self.classes is None else next(iter(self.classes.calibration.values()), None)

    @property
    def waiting_share(self) -> float:
        """The share of the time of all epochs in which the network waited for images."""
        waiting = float((self.metrics["waiting_share"] * self.metrics["seconds"]).sum())
        return waiting / max(self.seconds or 0.0, 1e-9)

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the finished epochs."""
        return int(self.metrics["step"].max()) if self.epochs else 0

    @property
    def machine(self) -> str:
        """The device with its threads and processes; a CPU's name contains its threads already."""
        record = self.record
        threads = "" if "thread" in record.device else f", {counted(record.threads, 'thread')}"
        shared = f", {record.devices} processes" if record.devices > 1 else ""
        return f"{record.device}{threads}{shared}"

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return len(self.metrics)

    @property
    def tolerance(self) -> int | None:
        """Tolerance of masks in pixels; None for data without one, or until they are evaluated."""
        return None if self.test is None else self.test.findings.record.dataset.tolerance

    @property
    def groups(self) -> str:
        """Name of the groups of images, in the plural."""
        return f"{self.record.grouping}s"


def read_training(run: Path, out: Path | None = None) -> TrainingFindings:
    """The training in folder `run`, complete or not; see `read_findings`.

    Raises:
        UsageError: The training does not exist or cannot be read.
    """
    record = read_train_record(run)
    weights, paper = run / "weights.safetensors", run / "paper.parquet"
    return TrainingFindings(
        run,
        record,
        _metrics(run / "metrics.csv", SCORINGS[record.task].validation.metrics),
        _held(run / "test"),
        _held(run / "baseline"),
        read_run_table(paper, PAPER) if paper.is_file() else None,
        weights.stat().st_size if weights.is_file() else None,
        out or run,
    )


def _metrics(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The rows of the epochs; values that older versions did not record are missing."""
    if not path.is_file():
        return pd.DataFrame(columns=list(columns), dtype=float)
    recorded = read_run_table(path)
    with reading(path):
        present = [name for name in columns if name in recorded or name not in ADDED]
        known: pd.DataFrame = recorded[present].apply(pd.to_numeric)
        if known["epoch"].isna().any():
            raise ValueError("a line has no epoch")
    return known.reindex(columns=list(columns))


def _spread(values: pd.Series) -> Spread | None:
    """The spread of `values`; None if no epoch has a value."""
    known = values.dropna().to_numpy(float)
    if not len(known):
        return None
    return Spread(float(np.median(known)), float(known.min()), float(known.max()), len(known))


def read_run_table(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The CSV or Parquet file `path` of a run, with `columns` or all of them.

    Raises:
        RunError: The file is damaged.
    """
    with reading(path):
        table = pd.read_parquet(path) if path.suffix == ".parquet" else read_csv(path)
        return table if columns is None else table[list(columns)]


def _held(run: Path) -> HeldOutResults | None:
    """The only model of an evaluation on clean images; None if it has not started."""
    if not has_record(run):
        return None
    findings = read_findings(run)
    numbers = findings.table[findings.table["transform"] == "identity"].iloc[0]
    rows = findings.rows[str(numbers["model"])][CLEAN_CELL]
    return HeldOutResults(findings, numbers, rows) if len(rows) else None


class PaperScores(NamedTuple):
    """Dice and IoU as in "Mamba-Based Tumor Segmentation", pooled over batches of slices.

    Args:
        dice: Mean over the batches with a defined dice; NaN if no batch has one.
        iou: Mean over all batches.
        batches: Number of batches.
        undefined: Number of batches without foreground in mask and prediction, whose dice is 0/0.
            The paper's plain mean is NaN if there is one; here they are left out of the mean.
    """

    dice: float
    iou: float
    batches: int
    undefined: int


def paper_batches(rows: pd.DataFrame, batch: int) -> tuple[FloatArray, FloatArray]:
    """Dice and IoU of each batch of `batch` consecutive rows (columns PAPER of `record`), (B,).

    A batch's dice is 2 sum(p t) / (sum p + sum t), without smoothing, and NaN if it is 0/0; its IoU
    is the number of pixels in both masks over the number in either, or 0 if both are empty. Soft
    masks enter the dice with their values, and the IoU with all pixels above 0. The last batch can
    be smaller.

    Source: the test notebooks of the paper.
    """
    number = np.arange(len(rows)) // batch
    sums = rows[list(PAPER[1:])].groupby(number).sum()
    size = (sums["predicted"] + sums["target"]).to_numpy(float)
    inside, overlap, union = (
        sums[name].to_numpy(float) for name in ("intersection", "overlap", "union")
    )
    dice = np.divide(2 * inside, size, out=np.full(len(size), np.nan), where=size > 0)
    return dice, np.divide(overlap, union, out=np.zeros(len(union)), where=union > 0)


def paper_scores(rows: pd.DataFrame, batch: int) -> PaperScores:
    """The scores of `rows`: the means over batches of equal weight, see `paper_batches`."""
    dice, iou = paper_batches(rows, batch)
    defined = dice[~np.isnan(dice)]
    return PaperScores(
        float(defined.mean()) if len(defined) else float("nan"),
        float(iou.mean()) if len(iou) else float("nan"),
        len(dice),
        len(dice) - len(defined),
    )


@dataclass(frozen=True)
class Score:
    """A dice and an IoU in [0, 1] with the ends of their 95 % intervals; None if unknown."""

    dice: float | None
    dice_low: float | None
    dice_high: float | None
    iou: float | None
    iou_low: float | None
    iou_high: float | None

    @property
    def dice_range(self) -> str:
        """The interval of the dice in brackets, after a space; empty if unknown."""
        ends = fraction_range(self.dice_low, self.dice_high)
        return "" if ends == MISSING else f" ({ends})"

    @property
    def dice_words(self) -> str:
        """The dice with its interval, as text."""
        return with_range(self.dice, self.dice_low, self.dice_high)

    @property
    def iou_words(self) -> str:
        """The IoU with its interval, as text."""
        return with_range(self.iou, self.iou_low, self.iou_high)


@dataclass(frozen=True)
class Pooled:
    """The paper's score with intervals over batches, and its numbers of batches."""

    score: Score
    batches: int
    undefined: int
    batch: int


def group_score(numbers: pd.Series) -> Score:
    """Dice and IoU, pooled within groups, of a row with `metrics.columns.MASK_TABLE_COLUMNS`."""
    names = ("dice", "dice_low", "dice_high", "iou", "iou_low", "iou_high")
    return Score(*(float(numbers[name]) if pd.notna(numbers[name]) else None for name in names))


def pooled(training: TrainingFindings) -> Pooled | None:
    """The paper's score of the test set; None if it was not recorded."""
    rows, batch = training.paper, training.record.recipe.paper_batch
    if rows is None or batch is None or rows.empty:
        return None
    scores, (dice, iou) = paper_scores(rows, batch), paper_batches(rows, batch)
    bootstrap = Bootstrap(training.record.seed)
    over_dice, over_iou = (
        bootstrap.mean(values, SHARES) for values in (dice[~np.isnan(dice)], iou)
    )
    score = Score(
        None if np.isnan(scores.dice) else scores.dice,
        over_dice.low if over_dice else None,
        over_dice.high if over_dice else None,
        scores.iou,
        over_iou.low if over_iou else None,
        over_iou.high if over_iou else None,
    )
    return Pooled(score, scores.batches, scores.undefined, batch)


def headline(training: TrainingFindings) -> Score | None:
    """The score by the training's protocol; None until it is evaluated."""
    if training.record.protocol == "paper":
        paper = pooled(training)
        return paper.score if paper else None
    return group_score(training.test.numbers) if training.test else None


def gain(training: TrainingFindings) -> CleanMaskComparison | None:
    """Otsu's threshold (as `clean`) against the training, paired; None until both are evaluated."""
    if training.test is None or training.baseline is None:
        return None
    bootstrap = Bootstrap(training.record.seed)
    return compare_masks_with_clean(training.baseline.rows, training.test.rows, bootstrap)
