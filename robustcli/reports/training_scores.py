"""The numbers of a training: of its own protocol, and against Otsu's threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustcli.evaluation.bootstrap import Bootstrap
from robustcli.evaluation.mask_scores import MaskComparison, compare_masks
from robustcli.reports.training import Training
from robustcli.training.paper_scores import PaperScores, paper_scores


@dataclass(frozen=True)
class Score:
    """A dice and an IoU in [0, 1] with the ends of their 95 % intervals; None where unknown."""

    dice: float | None
    dice_low: float | None
    dice_high: float | None
    iou: float | None
    iou_low: float | None
    iou_high: float | None


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
