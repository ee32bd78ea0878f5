"""The scores of one cell of a segmenter from its rows of pixel counts: pure functions.

Every share is a fraction in [0, 1]; an undefined number is None.

The dice and IoU of an image, or a group, without foreground are 1 if none is predicted and 0
otherwise. (As nnU-Net's and MONAI's with `ignore_empty=False`; leaving such images out would hide
false alarms.) `dice_foreground` leaves images without true foreground out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.metrics.intervals import Bootstrap, FloatArray, Interval
from robustcli.metrics.rows import common_images

BoolMask = NDArray[np.bool_]  # (H, W)
_COUNTS = ["tp", "fp", "fn"]


class RelaxedScores(NamedTuple):
    """Mnih's relaxed precision and recall, with 95 % bootstrap intervals over groups.

    Precision is the share of predicted pixels within a tolerance of a true one, recall the share of
    true pixels within it of a predicted one; distances are Euclidean, between the centres of
    pixels. The pixels of all images are pooled.

    Source: V. Mnih, Machine Learning for Aerial Image Labeling, PhD thesis, University of Toronto,
    2013, with a tolerance of 3 pixels. It reports the point at which both are equal; here they are
    those of the segmenter's one mask.
    """

    precision: float | None = None
    precision_low: float | None = None
    precision_high: float | None = None
    recall: float | None = None
    recall_low: float | None = None
    recall_high: float | None = None


def near(mask: BoolMask, tolerance: int) -> BoolMask:
    """`mask` (H, W) dilated by a disk: exact, and far faster than computing distances."""
    import cv2

    steps = np.arange(-tolerance, tolerance + 1) ** 2
    disk = (np.add.outer(steps, steps) <= tolerance**2).astype(np.uint8)
    dilated: BoolMask = cv2.dilate(mask.astype(np.uint8), disk).astype(np.bool_)
    return dilated


def near_counts(prediction: BoolMask, truth: BoolMask, tolerance: int) -> dict[str, object]:
    """Counts of predicted pixels near the truth and of true ones near the prediction."""
    return {
        "predicted_near": int(np.count_nonzero(prediction & near(truth, tolerance))),
        "true_near": int(np.count_nonzero(truth & near(prediction, tolerance))),
    }


def relaxed_scores(rows: pd.DataFrame, bootstrap: Bootstrap) -> RelaxedScores:
    """The scores of `rows` (columns: `MASK_SCHEMA`); None where undefined.

    Both are undefined for data without a tolerance, precision without predicted pixels, recall
    without true ones. An interval needs two groups with pixels.
    """
    if rows[["predicted_near", "true_near"]].isna().any(axis=None):
        return RelaxedScores()
    predicted, true = rows["tp"] + rows["fp"], rows["tp"] + rows["fn"]
    return RelaxedScores(
        *_pooled_share(rows["predicted_near"], predicted, rows["group"], bootstrap),
        *_pooled_share(rows["true_near"], true, rows["group"], bootstrap),
    )


def _pooled_share(
    part: pd.Series, total: pd.Series, groups: pd.Series, bootstrap: Bootstrap
) -> tuple[float | None, float | None, float | None]:
    counts = pd.DataFrame({"part": part, "total": total}).groupby(groups, sort=True).sum()
    # A group without pixels changes no sum, and resamples of such groups alone have no share.
    parts, totals = counts[counts["total"] > 0].to_numpy(dtype=float).T
    if not len(totals):
        return None, None, None
    return float(parts.sum() / totals.sum()), *_ends(bootstrap.ratio(parts, totals))


@dataclass(frozen=True)
class MaskScores:
    """How well the predicted masks of `n` images in `groups` groups agree with the true ones.

    `dice` and `iou` pool the pixels of each group and average over groups; `dice_image` is the mean
    over images, `dice_foreground` the same over images with true foreground. `precision` and
    `recall` pool all pixels. `hd95` is the median over images of the 95 % Hausdorff distance in
    pixels, `boundary_dice` the mean over images of the surface dice at 2 pixels, both over images
    in which neither mask is empty. See `RelaxedScores` for `relaxed_...`. All intervals are 95 %
    bootstrap intervals over groups; None with one group.
    """

    n: int
    groups: int
    dice: float | None = None
    dice_low: float | None = None
    dice_high: float | None = None
    iou: float | None = None
    iou_low: float | None = None
    iou_high: float | None = None
    dice_image: float | None = None
    dice_image_low: float | None = None
    dice_image_high: float | None = None
    dice_foreground: float | None = None
    precision: float | None = None
    recall: float | None = None
    hd95: float | None = None
    boundary_dice: float | None = None
    relaxed_precision: float | None = None
    relaxed_precision_low: float | None = None
    relaxed_precision_high: float | None = None
    relaxed_recall: float | None = None
    relaxed_recall_low: float | None = None
    relaxed_recall_high: float | None = None


@dataclass(frozen=True)
class CleanMaskComparison:
    """The same images with and without the transform; dice is pooled within groups.

    `drop` is `clean_dice` minus the dice of the transformed images, with its paired 95 % bootstrap
    interval over groups; `retention` is their quotient, None for a `clean_dice` of 0.
    `paired_groups` counts the groups that both measurements have.
    """

    clean_dice: float | None
    drop: float | None
    drop_low: float | None
    drop_high: float | None
    retention: float | None
    paired_groups: int


def dice(counts: pd.DataFrame) -> FloatArray:
    """2 tp / (2 tp + fp + fn) of every row; 1 if both masks are empty."""
    return _share(2 * counts["tp"], 2 * counts["tp"] + counts["fp"] + counts["fn"])


def iou(counts: pd.DataFrame) -> FloatArray:
    """Tp / (tp + fp + fn) of every row; 1 if both masks are empty."""
    return _share(counts["tp"], counts["tp"] + counts["fp"] + counts["fn"])


def mask_scores(rows: pd.DataFrame, bootstrap: Bootstrap) -> MaskScores:
    """The scores of `rows` (columns: `MASK_SCHEMA`)."""
    if rows.empty:
        return MaskScores(0, 0)
    pooled, image_dice = _pooled(rows), dice(rows)
    dice_of_groups, iou_of_groups = dice(pooled), iou(pooled)
    true, predicted = rows["tp"] + rows["fn"], rows["tp"] + rows["fp"]
    owner = pd.factorize(rows["group"].to_numpy(dtype=object), sort=True)[0]
    dice_sums, images = np.bincount(owner, image_dice).astype(np.float64), np.bincount(owner)
    hd95, boundary_dice = rows["hd95"].dropna(), rows["boundary_dice"].dropna()
    return MaskScores(
        len(rows),
        len(pooled),
        float(dice_of_groups.mean()),
        *_ends(bootstrap.mean(dice_of_groups)),
        float(iou_of_groups.mean()),
        *_ends(bootstrap.mean(iou_of_groups)),
        float(image_dice.mean()),
        *_ends(bootstrap.ratio(dice_sums, images.astype(np.float64))),
        float(image_dice[true > 0].mean()) if (true > 0).any() else None,
        _ratio(rows["tp"], predicted),
        _ratio(rows["tp"], true),
        float(hd95.median()) if len(hd95) else None,
        float(boundary_dice.to_numpy(dtype=float).mean()) if len(boundary_dice) else None,
        *relaxed_scores(rows, bootstrap),
    )


def compare_masks_with_clean(
    clean: pd.DataFrame, rows: pd.DataFrame, bootstrap: Bootstrap
) -> CleanMaskComparison:
    """The loss of `rows` against `clean`, over the images (`image_id`) that both have.

    Both are rows of one model (columns: `MASK_SCHEMA`), `clean` those of untouched images; each
    resample of `bootstrap` draws the same groups of both.
    """
    common_rows = common_images([clean, rows])
    if common_rows[0].empty:
        return CleanMaskComparison(None, None, None, None, None, 0)
    before, after = map(group_dice, common_rows)
    clean_dice, changed = float(before.mean()), float(after.mean())
    interval = bootstrap.mean(before - after)
    retention = changed / clean_dice if clean_dice else None
    return CleanMaskComparison(
        clean_dice, clean_dice - changed, *_ends(interval), retention, len(before)
    )


def group_dice(rows: pd.DataFrame) -> FloatArray:
    """The dice of each group, its pixels pooled, groups sorted by name."""
    return dice(_pooled(rows))


def _pooled(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.groupby("group", sort=True)[_COUNTS].sum()


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def _share(part: pd.Series[int], total: pd.Series[int]) -> FloatArray:
    parts, totals = part.to_numpy(dtype=float), total.to_numpy(dtype=float)
    return np.divide(parts, totals, out=np.ones(len(parts)), where=totals > 0)


def _ratio(part: pd.Series[int], total: pd.Series[int]) -> float | None:
    return int(part.sum()) / int(total.sum()) if total.sum() else None


def pooled_scores(counts: NDArray[np.int64], groups: Sequence[str]) -> tuple[float, float]:
    """Dice and IoU, pooled within each group and averaged over groups.

    `counts` (N, 3) are true positive, false positive and false negative pixels of each image.
    """
    pooled = pd.DataFrame(counts, columns=_COUNTS).groupby(np.asarray(groups)).sum()
    return float(dice(pooled).mean()), float(iou(pooled).mean())
