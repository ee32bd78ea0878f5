"""Dice and IoU from counts of pixels, pooled within each group and averaged over groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pooled_scores(counts: NDArray[np.int64], groups: Sequence[str]) -> tuple[float, float]:
    """Dice and IoU; a group without foreground in mask and prediction counts 1.

    Args:
        counts: (N, 3): true positive, false positive and false negative pixels of each image.
        groups: The group of each.
    """
    _, of = np.unique(np.asarray(groups), return_inverse=True)
    pooled = np.zeros((of.max() + 1, 3), np.int64)
    np.add.at(pooled, of, counts)
    tp, wrong = pooled[:, 0], pooled[:, 1] + pooled[:, 2]
    empty = tp + wrong == 0
    dice = np.where(empty, 1.0, 2 * tp / np.maximum(2 * tp + wrong, 1))
    iou = np.where(empty, 1.0, tp / np.maximum(tp + wrong, 1))
    return float(dice.mean()), float(iou.mean())
