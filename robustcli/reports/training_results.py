"""The numbers of trainings for other programs: a line per run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.metrics.intervals import Bootstrap
from robustcli.metrics.mask_scores import MaskComparison, compare_masks
from robustcli.reports.numbers import MISSING, fraction_range
from robustcli.reports.training_findings import Training
from robustcli.training.record import PAPER, TrainRecord

# Dice and IoU as "Mamba-Based Tumor Segmentation" counted them: pooled over batches of slices.


class PaperScores(NamedTuple):
    """The paper's two numbers.

    Args:
        dice: Mean over the batches that have one; NaN where none has.
        iou: Mean over all batches.
        batches: How many.
        undefined: Batches without foreground in mask and prediction, whose dice is 0/0. The paper's
            plain mean is no number as soon as there is one; here they are left out of it.
    """

    dice: float
    iou: float
    batches: int
    undefined: int


def paper_scores(rows: pd.DataFrame, batch: int) -> PaperScores:
    """The scores of `rows` (columns PAPER of `record`), in batches of `batch` rows, in their order.

    A batch's dice is 2 sum(p t) / (sum p + sum t), without smoothing; its IoU is pixels in both
    over pixels in either, 0 where there are none. A soft mask counts softly for dice, and for IoU
    wherever it is above 0. The last batch may be smaller and counts as much as the others.

    Source: the test notebooks of the paper.
    """
    number = np.arange(len(rows)) // batch
    pooled = rows[list(PAPER[1:])].groupby(number).sum()
    size = (pooled["predicted"] + pooled["target"]).to_numpy(float)
    defined = size > 0
    dice = 2 * pooled["intersection"].to_numpy(float)[defined] / size[defined]
    union = pooled["union"].to_numpy(float)
    iou = np.divide(pooled["overlap"], union, out=np.zeros_like(union), where=union > 0)
    return PaperScores(
        float(dice.mean()) if len(dice) else float("nan"),
        float(iou.mean()) if len(iou) else float("nan"),
        len(pooled),
        int((~defined).sum()),
    )


# The numbers of a training: of its own protocol, and against Otsu's threshold.


@dataclass(frozen=True)
class Score:
    """A dice and an IoU in [0, 1] with the ends of their 95 % intervals; None where unknown."""

    dice: float | None
    dice_low: float | None
    dice_high: float | None
    iou: float | None
    iou_low: float | None
    iou_high: float | None

    @property
    def dice_range(self) -> str:
        """The interval of the dice in brackets, with a blank before it; empty where unknown."""
        return _in_brackets(self.dice_low, self.dice_high)

    @property
    def iou_range(self) -> str:
        """The same of the IoU."""
        return _in_brackets(self.iou_low, self.iou_high)


def _in_brackets(low: float | None, high: float | None) -> str:
    ends = fraction_range(low, high)
    return "" if ends == MISSING else f" ({ends})"


@dataclass(frozen=True)
class Pooled:
    """The paper's statistic: `score`, its intervals over batches, and how it was counted."""

    score: Score
    batches: int
    undefined: int
    batch: int


def group_score(numbers: pd.Series) -> Score:
    """Dice and IoU pooled within groups, of a line with `metrics.SEG_COLUMNS`."""
    names = ("dice", "dice_low", "dice_high", "iou", "iou_low", "iou_high")
    return Score(*(float(numbers[name]) if pd.notna(numbers[name]) else None for name in names))


def pooled(training: Training) -> Pooled | None:
    """The paper's statistic of the test set; None where it was not recorded."""
    rows, batch = training.paper, training.record.recipe.paper_batch
    if rows is None or batch is None or rows.empty:
        return None
    whole = paper_scores(rows, batch)
    single = [paper_scores(rows[p : p + batch], batch) for p in range(0, len(rows), batch)]
    return Pooled(_pooled_score(whole, single, training), whole.batches, whole.undefined, batch)


def _pooled_score(whole: PaperScores, single: list[PaperScores], training: Training) -> Score:
    """The means over batches, with intervals that resample batches."""
    bootstrap = Bootstrap(training.record.seed)
    dice = np.array([part.dice for part in single if not np.isnan(part.dice)])
    over_dice, over_iou = bootstrap.mean(dice), bootstrap.mean(np.array([p.iou for p in single]))
    return Score(
        None if np.isnan(whole.dice) else whole.dice,
        over_dice.low if over_dice else None,
        over_dice.high if over_dice else None,
        whole.iou,
        over_iou.low if over_iou else None,
        over_iou.high if over_iou else None,
    )


def headline(training: Training) -> Score | None:
    """What the training's own protocol reports; None until it is measured."""
    if training.record.protocol == "paper":
        found = pooled(training)
        return found.score if found else None
    return group_score(training.test.numbers) if training.test else None


def gain(training: Training) -> MaskComparison | None:
    """Otsu's threshold (as `clean`) against the training, paired; None until both are there."""
    if training.test is None or training.baseline is None:
        return None
    bootstrap = Bootstrap(training.record.seed)
    return compare_masks(training.baseline.rows, training.test.rows, bootstrap)


# What "Mamba-Based Tumor Segmentation" printed of the networks of its Table I.
#
# Its numbers are of one experiment: the LGG set, protocol `paper`, 100 epochs.


IMAGES = 3929
EPOCHS = 100


@dataclass(frozen=True)
class Published:
    """One line of the table.

    Args:
        model: Its name here.
        parameters: As counted from the code that the paper's numbers were made with.
        dice: In [0, 1], with the digits that were printed.
        iou: From the notebooks behind the table.
        remark: What is to be known of these numbers; empty for nothing.
    """

    model: str
    parameters: int
    dice: float
    iou: float | None
    remark: str


def table_one() -> list[Published]:
    """All lines, the highest dice first."""
    lines = [
        Published(entry.name, entry.parameters, entry.published, entry.published_iou, entry.remark)
        for entry in CATALOGUE.values()
        if entry.task == "seg" and entry.published is not None
    ]
    return sorted(lines, key=lambda line: -line.dice)


def published(model: str) -> Published | None:
    """The line of `model`, where the paper has it."""
    return next((line for line in table_one() if line.model == model), None)


def other_experiment(record: TrainRecord) -> list[str]:
    """In what a training differs from the paper's, as far as it decides the numbers; in words."""
    differences = []
    if record.protocol != "paper":
        differences.append(f"protocol {record.protocol} instead of paper")
    if record.dataset.images != IMAGES:
        differences.append(
            f"{record.dataset.images:,} images of {record.dataset.name} instead of "
            f"the {IMAGES:,} slices of LGG"
        )
    if record.recipe.epochs != EPOCHS or record.recipe.images_per_epoch is not None:
        differences.append(f"{record.recipe.epochs} epochs instead of {EPOCHS}")
    return differences


_MASKS = (
    *("n", "groups", "dice", "dice_low", "dice_high", "iou", "iou_low", "iou_high"),
    *("dice_image", "dice_image_low", "dice_image_high", "dice_foreground", "precision", "recall"),
    *("hd95", "boundary_dice"),
    *("relaxed_precision", "relaxed_precision_low", "relaxed_precision_high"),
    *("relaxed_recall", "relaxed_recall_low", "relaxed_recall_high"),
)
_PAPER = ("dice", "dice_low", "dice_high", "iou", "iou_low", "iou_high")
_COUNTS = (
    *("n", "groups", "correct", "params", "epochs", "chosen_epoch"),
    *("peak_memory_bytes", "weights_bytes"),
)
COLUMNS = (
    *("run", "model", "protocol", "dataset", "status"),
    *_MASKS,
    *(f"paper_{name}" for name in _PAPER),
    *("params", "epochs", "chosen_epoch", "seconds", "peak_memory_bytes", "energy_joules"),
    *("weights_bytes", "published_dice", "published_iou", "baseline_dice", "baseline_iou"),
)
_WORDS = COLUMNS[:5]
CLASS_COLUMNS = (
    *("run", "model", "dataset", "status", "n", "correct", "top1", "top1_low", "top1_high"),
    *("top5", "params", "epochs", "chosen_epoch", "seconds", "peak_memory_bytes"),
    *("energy_joules", "weights_bytes", "baseline_top1"),
)


def training_results(trainings: Sequence[Training]) -> pd.DataFrame:
    """One row per training with COLUMNS; a number that is not known is missing.

    Shares are fractions in [0, 1]. `dice` and `iou` are pooled within groups (`protocol` patient),
    `paper_dice` and `paper_iou` over batches as the paper did.
    """
    return _table([_of_segmenter(training) for training in trainings], COLUMNS)


def class_results(training: Training) -> pd.DataFrame:
    """One row of a classifier's training with CLASS_COLUMNS; what is not known is missing."""
    row, test, baseline = _of_any(training), training.test, training.baseline_numbers
    if test is not None:
        row |= {name: test.numbers[name] for name in training.scoring.columns}
    row["baseline_top1"] = None if baseline is None else baseline["top1"]
    return _table([row], CLASS_COLUMNS)


def _table(rows: list[dict[str, object]], columns: tuple[str, ...]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(columns))
    kinds = {name: "Int64" if name in _COUNTS else "Float64" for name in columns}
    return table.astype({name: kind for name, kind in kinds.items() if name not in _WORDS})


def _of_any(training: Training) -> dict[str, object]:
    """What the results of segmenters and of classifiers have in common."""
    record = training.record
    return {
        "run": training.run.resolve().name,
        "model": record.model,
        "dataset": record.dataset.name,
        "status": record.status,
        "params": record.parameters,
        "epochs": training.epochs,
        "chosen_epoch": record.chosen_epoch,
        "seconds": training.seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "energy_joules": record.energy_joules,
        "weights_bytes": training.weights_bytes,
    }


def _of_segmenter(training: Training) -> dict[str, object]:
    row, line = _of_any(training), published(training.record.model)
    row["protocol"] = training.record.protocol
    if line is not None:
        row |= {"published_dice": line.dice, "published_iou": line.iou}
    if training.test is not None:
        row |= {name: training.test.numbers[name] for name in _MASKS}
    if training.baseline is not None:
        row |= {f"baseline_{name}": training.baseline.numbers[name] for name in ("dice", "iou")}
    paper = pooled(training)
    if paper is not None:
        row |= {f"paper_{name}": getattr(paper.score, name) for name in _PAPER}
    return row
