"""The numbers of one cell of a segmenter from its rows of pixel counts: pure functions.

Every share is a fraction in [0, 1]; a number that cannot be given is None.

An image, or a group, without foreground in which none is predicted is right: its dice and IoU are
1. With any pixel predicted they are 0. (So nnU-Net's and MONAI's `ignore_empty=False`; counting
such images as missing instead would hide false alarms.) `dice_foreground` leaves images without
true foreground out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.metrics.intervals import Bootstrap, Interval
from robustcli.metrics.rows import common_images

# Mnih's relaxed precision and recall: a pixel counts as right when the other mask is near.
#
# Relaxed precision is the share of predicted pixels within a tolerance of a true one, relaxed
# recall the share of true pixels within it of a predicted one; distances are Euclidean, between the
# centres of pixels. The pixels of all images are pooled.
#
# Source: V. Mnih, Machine Learning for Aerial Image Labeling, PhD thesis, University of Toronto,
# 2013, with a tolerance of 3 pixels. It reports the point at which both are equal; here they are
# those of the one mask that the segmenter gives.


BoolMask = NDArray[np.bool_]  # (H, W)


class RelaxedScores(NamedTuple):
    """Both shares in [0, 1], each with the ends of its 95 % bootstrap interval over groups."""

    precision: float | None = None
    precision_low: float | None = None
    precision_high: float | None = None
    recall: float | None = None
    recall_low: float | None = None
    recall_high: float | None = None


def near(mask: BoolMask, tolerance: int) -> BoolMask:
    """The pixels within `tolerance` pixels of one of `mask` (H, W), its own among them.

    A dilation by a disk: exact, and far faster than measuring distances.
    """
    import cv2

    steps = np.arange(-tolerance, tolerance + 1) ** 2
    disk = (np.add.outer(steps, steps) <= tolerance**2).astype(np.uint8)
    found: BoolMask = cv2.dilate(mask.astype(np.uint8), disk).astype(np.bool_)
    return found


def near_counts(prediction: BoolMask, truth: BoolMask, tolerance: int) -> dict[str, object]:
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
        *_pooled_share(rows["predicted_near"], predicted, rows["group"], bootstrap),
        *_pooled_share(rows["true_near"], true, rows["group"], bootstrap),
    )


def _pooled_share(
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


_COUNTS = ["tp", "fp", "fn"]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class MaskScores:
    """How well the predicted masks agree with the true ones.

    Args:
        n: Images.
        groups: Groups of images, such as patients.
        dice: Pixels pooled within each group, then the mean over groups; so is `iou`.
        dice_low: Lower end of its 95 % bootstrap interval over groups; None with one group.
        dice_high: Its upper end.
        iou: See `dice`.
        iou_low: See `dice_low`.
        iou_high: See `dice_high`.
        dice_image: Mean of the images' own dice; the interval resamples groups as well.
        dice_image_low: See `dice_low`.
        dice_image_high: See `dice_high`.
        dice_foreground: The same over images with true foreground.
        precision: Of all pixels called foreground, the share that is.
        recall: Of all foreground pixels, the share that was found.
        hd95: Median over images of the 95 % Hausdorff distance, in pixels, where both masks are
            there; so is `boundary_dice`.
        boundary_dice: Mean over images of the surface dice at 2 pixels.
        relaxed_precision: See `relaxed`; None for data without a tolerance. So are the other five.
        relaxed_precision_low: See `dice_low`.
        relaxed_precision_high: See `dice_high`.
        relaxed_recall: See `relaxed`.
        relaxed_recall_low: See `dice_low`.
        relaxed_recall_high: See `dice_high`.
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
    """The same images with and without the transform.

    Args:
        clean_dice: Dice (pooled within groups) of the untouched images.
        drop: `clean_dice` minus that of the transformed images.
        drop_low: Lower end of the paired 95 % bootstrap interval of `drop` over groups.
        drop_high: Its upper end.
        retention: Dice of the transformed images over `clean_dice`; None when that is 0.
        paired_groups: Groups that both measurements have.
    """

    clean_dice: float | None
    drop: float | None
    drop_low: float | None
    drop_high: float | None
    retention: float | None
    paired_groups: int


def dice(counts: pd.DataFrame) -> FloatArray:
    """2 tp / (2 tp + fp + fn) of every row; 1 where neither mask has a pixel."""
    return _share(2 * counts["tp"], 2 * counts["tp"] + counts["fp"] + counts["fn"])


def iou(counts: pd.DataFrame) -> FloatArray:
    """Tp / (tp + fp + fn) of every row; 1 where neither mask has a pixel."""
    return _share(counts["tp"], counts["tp"] + counts["fp"] + counts["fn"])


def mask_scores(rows: pd.DataFrame, bootstrap: Bootstrap) -> MaskScores:
    """The scores of `rows` (columns: `store.MASK_SCHEMA`)."""
    if rows.empty:
        return MaskScores(0, 0)
    pooled, of_image = _pooled(rows), dice(rows)
    of_group, overlap = dice(pooled), iou(pooled)
    true, called = rows["tp"] + rows["fn"], rows["tp"] + rows["fp"]
    return MaskScores(
        len(rows),
        len(pooled),
        float(of_group.mean()),
        *_ends(bootstrap.mean(of_group)),
        float(overlap.mean()),
        *_ends(bootstrap.mean(overlap)),
        float(of_image.mean()),
        *_ends(_image_interval(rows["group"], of_image, bootstrap)),
        _mean(of_image[true > 0]),
        _ratio(rows["tp"], called),
        _ratio(rows["tp"], true),
        _median(rows["hd95"]),
        _mean(rows["boundary_dice"].dropna().to_numpy(dtype=float)),
        *relaxed_scores(rows, bootstrap),
    )


def compare_masks_with_clean(
    clean: pd.DataFrame, rows: pd.DataFrame, bootstrap: Bootstrap
) -> CleanMaskComparison:
    """What `rows` lost against `clean`, over the images (`image_id`) that both have.

    Args:
        clean: Rows of one model on untouched images (columns: `store.MASK_SCHEMA`).
        rows: Rows of the same model on transformed images.
        bootstrap: The run's resamples; each takes the same groups of both.
    """
    both = common_images([clean, rows])
    if both[0].empty:
        return CleanMaskComparison(None, None, None, None, None, 0)
    before, after = map(group_dice, both)
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
    """The counts summed within each group, groups sorted by name."""
    return rows.groupby("group", sort=True)[_COUNTS].sum()


def _image_interval(
    groups: pd.Series[str], values: FloatArray, bootstrap: Bootstrap
) -> Interval | None:
    owner = pd.factorize(groups.to_numpy(dtype=object), sort=True)[0]
    images = np.bincount(owner).astype(np.float64)
    return bootstrap.ratio(np.bincount(owner, values).astype(np.float64), images)


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def _share(part: pd.Series[int], whole: pd.Series[int]) -> FloatArray:
    parts, wholes = part.to_numpy(dtype=float), whole.to_numpy(dtype=float)
    return np.divide(parts, wholes, out=np.ones(len(parts)), where=wholes > 0)


def _ratio(part: pd.Series[int], whole: pd.Series[int]) -> float | None:
    total = int(whole.sum())
    return int(part.sum()) / total if total else None


def _mean(values: FloatArray) -> float | None:
    return float(values.mean()) if len(values) else None


def _median(values: pd.Series[float]) -> float | None:
    known = values.dropna()
    return float(known.median()) if len(known) else None


# Dice and IoU from counts of pixels, pooled within each group and averaged over groups.


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
