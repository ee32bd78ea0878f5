"""Dice and IoU as "Mamba-Based Tumor Segmentation" counted them: pooled over batches of slices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from robustcli.training.record import PAPER


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
