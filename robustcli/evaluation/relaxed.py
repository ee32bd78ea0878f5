"""Mnih's relaxed precision and recall: a pixel counts as right when the other mask is near.

Relaxed precision is the share of predicted pixels within a tolerance of a true one, relaxed recall
the share of true pixels within it of a predicted one; distances are Euclidean, between the centres
of pixels. The pixels of all images are pooled.

Source: V. Mnih, Machine Learning for Aerial Image Labeling, PhD thesis, University of Toronto,
2013, with a tolerance of 3 pixels. It reports the point at which both are equal; here they are
those of the one mask that the segmenter gives.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.evaluation.bootstrap import Bootstrap

Mask = NDArray[np.bool_]  # (H, W)


class RelaxedScores(NamedTuple):
    """Both shares in [0, 1], each with the ends of its 95 % bootstrap interval over groups."""

    precision: float | None = None
    precision_low: float | None = None
    precision_high: float | None = None
    recall: float | None = None
    recall_low: float | None = None
    recall_high: float | None = None


def near(mask: Mask, tolerance: int) -> Mask:
    """The pixels within `tolerance` pixels of one of `mask` (H, W), its own among them.

    A dilation by a disk: exact, and far faster than measuring distances.
    """
    import cv2

    steps = np.arange(-tolerance, tolerance + 1) ** 2
    disk = (np.add.outer(steps, steps) <= tolerance**2).astype(np.uint8)
    found: Mask = cv2.dilate(mask.astype(np.uint8), disk).astype(np.bool_)
    return found


def near_counts(prediction: Mask, truth: Mask, tolerance: int) -> dict[str, object]:
    """Predicted pixels near the truth and true ones near the prediction, both masks (H, W)."""
    return {
        "predicted_near": int(np.count_nonzero(prediction & near(truth, tolerance))),
        "true_near": int(np.count_nonzero(truth & near(prediction, tolerance))),
    }


def relaxed_scores(rows: pd.DataFrame, bootstrap: Bootstrap) -> RelaxedScores:
    """The scores of `rows` (columns: `store.MASK_SCHEMA`); None where they do not exist.

    No share exists of data without a tolerance, no precision where nothing was predicted, no recall
    where nothing is true. An interval needs two groups with pixels.
    """
    if rows[["predicted_near", "true_near"]].isna().any(axis=None):
        return RelaxedScores()
    predicted, true = rows["tp"] + rows["fp"], rows["tp"] + rows["fn"]
    return RelaxedScores(
        *_share(rows["predicted_near"], predicted, rows["group"], bootstrap),
        *_share(rows["true_near"], true, rows["group"], bootstrap),
    )


def _share(
    part: pd.Series, whole: pd.Series, groups: pd.Series, bootstrap: Bootstrap
) -> tuple[float | None, float | None, float | None]:
    counts = pd.DataFrame({"part": part, "whole": whole}).groupby(groups, sort=True).sum()
    # A group without pixels changes no sum, and resamples of such groups alone have no share.
    held = counts[counts["whole"] > 0].to_numpy(dtype=float)
    if not len(held):
        return None, None, None
    interval = bootstrap.ratio(held[:, 0], held[:, 1])
    low, high = (None, None) if interval is None else interval
    return float(held[:, 0].sum() / held[:, 1].sum()), low, high
