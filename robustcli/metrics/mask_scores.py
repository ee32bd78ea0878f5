"""Computes the scores of one cell of a segmenter from its rows, with pure functions.

Every share is a fraction in [0, 1]; an undefined number is None.

The dice and IoU of an image or group without true foreground are 1 if no foreground is predicted,
else 0, as in nnU-Net and in MONAI with `ignore_empty=False`; excluding these images would hide
false positives. `dice_foreground` excludes images without true foreground.

For masks of several classes, each score is the mean over the scores of the classes, each class
compared with all other pixels. A class in neither mask of a group has the score 1 for that group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.metrics.columns import common_images
from robustcli.metrics.intervals import (
    DIFFERENCES_OF_SHARES,
    SHARES,
    Bootstrap,
    FloatArray,
    both_ends,
)

BoolMask = NDArray[np.bool_]  # (H, W)
_COUNTS = ("tp", "fp", "fn")
_DISTANCES = ("hd95", "boundary_dice")
CLASS_PREFIX = "class_"
"""Prefix of row columns with a list of one value per class, without background."""
MOST_CONFUSED = 20
"""Largest number of classes for which rows contain a confusion matrix, to limit their size."""


def has_classes(rows: pd.DataFrame) -> bool:
    """Whether `rows` describe masks of several classes; otherwise the class columns are null."""
    name = f"{CLASS_PREFIX}{_COUNTS[0]}"
    return name in rows and bool(rows[name].notna().any())


def counts_of(rows: pd.DataFrame) -> NDArray[np.int64]:
    """Counts (N, C, 3) of true positive, false positive and false negative pixels of each class.

    C is 1 for masks of foreground and background.
    """
    if not has_classes(rows):
        return rows[list(_COUNTS)].to_numpy(dtype=np.int64)[:, None]
    return np.stack([_of_classes(rows, name, np.dtype(np.int64)) for name in _COUNTS], axis=2)


def distances_of(rows: pd.DataFrame, name: str) -> FloatArray:
    """The column `hd95` or `boundary_dice` of each image and class, (N, C); NaN if undefined."""
    if not has_classes(rows):
        return rows[name].to_numpy(dtype=float)[:, None]
    return _of_classes(rows, name, np.dtype(np.float64))


def _of_classes(rows: pd.DataFrame, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.array([list(values) for values in rows[f"{CLASS_PREFIX}{name}"]], dtype=dtype)


def class_rows(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each class, as if masks contained only that class; `[rows]` without classes."""
    if not has_classes(rows):
        return [rows]
    counts = counts_of(rows)
    distances = {
        name: distances_of(rows, name) for name in _DISTANCES if f"{CLASS_PREFIX}{name}" in rows
    }
    plain = rows[[name for name in rows if not str(name).startswith(CLASS_PREFIX)]]
    return [
        plain.assign(
            **dict(zip(_COUNTS, counts[:, index].T, strict=True)),
            **{name: values[:, index] for name, values in distances.items()},
        )
        for index in range(counts.shape[1])
    ]


def any_class_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows for the pixels of any class against background."""
    return rows[[name for name in rows if not str(name).startswith(CLASS_PREFIX)]]


def pixel_confusion(rows: pd.DataFrame) -> NDArray[np.int64] | None:
    """Pixel counts (K+1, K+1) by true class (row, background first) and predicted class.

    None for masks without classes, or with more than MOST_CONFUSED classes.
    """
    name = f"{CLASS_PREFIX}confusion"
    if name not in rows or rows.empty or rows[name].isna().any():
        return None
    flat: NDArray[np.int64] = np.array([list(values) for values in rows[name]], np.int64).sum(0)
    side = math.isqrt(len(flat))
    return flat.reshape(side, side)


class RelaxedScores(NamedTuple):
    """Mnih's relaxed precision and recall, with 95 % bootstrap intervals over groups.

    Precision is the share of predicted pixels within a tolerance of a true pixel, recall the share
    of true pixels within a tolerance of a predicted pixel. Distances are Euclidean, between pixel
    centres. The pixels of all images are pooled.

    Source: V. Mnih, Machine Learning for Aerial Image Labeling, PhD thesis, University of Toronto,
    2013, with a tolerance of 3 pixels. The thesis reports the break-even point of
    precision and recall; here, both are computed for the predicted mask of the segmenter.
    """

    precision: float | None = None
    precision_low: float | None = None
    precision_high: float | None = None
    recall: float | None = None
    recall_low: float | None = None
    recall_high: float | None = None


def near(mask: BoolMask, tolerance: int) -> BoolMask:
    """Dilates `mask` (H, W) by a disk; exact, and much faster than a distance transform."""
    import cv2

    steps = np.arange(-tolerance, tolerance + 1) ** 2
    disk = (np.add.outer(steps, steps) <= tolerance**2).astype(np.uint8)
    dilated: BoolMask = cv2.dilate(mask.astype(np.uint8), disk).astype(np.bool_)
    return dilated


def near_counts(prediction: BoolMask, truth: BoolMask, tolerance: int) -> dict[str, object]:
    """Counts of predicted pixels near the true mask and of true pixels near the prediction."""
    return {
        "predicted_near": int(np.count_nonzero(prediction & near(truth, tolerance))),
        "true_near": int(np.count_nonzero(truth & near(prediction, tolerance))),
    }


def relaxed_scores(rows: pd.DataFrame, bootstrap: Bootstrap) -> RelaxedScores:
    """The scores of `rows` (columns: `MASK_SCHEMA`); None where undefined.

    Both are undefined for data without a tolerance; precision also without predicted pixels, recall
    also without true pixels. An interval needs at least two groups with pixels.
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
    # Groups without pixels change no sum, but a resample with only such groups has no share.
    parts, totals = counts[counts["total"] > 0].to_numpy(dtype=float).T
    if not len(totals):
        return None, None, None
    return float(parts.sum() / totals.sum()), *both_ends(bootstrap.ratio(parts, totals, SHARES))


@dataclass(frozen=True)
class MaskScores:
    """The agreement of predicted and true masks, for `n` images in `groups` groups.

    `dice` and `iou` pool the pixels of each group and average over groups; `dice_image` is the mean
    over images, `dice_foreground` the mean over images with true foreground. `precision` and
    `recall` pool all pixels. `hd95` is the median over images of the 95 % Hausdorff distance in
    pixels, `boundary_dice` the mean over images of the surface dice at 2 pixels, both over images
    with two non-empty masks, whose number is `hd95_n`. See `RelaxedScores` for `relaxed_...`. All
    intervals are 95 % bootstrap intervals over groups; None for fewer than `FEWEST_UNITS`.
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
    hd95_n: int = 0


@dataclass(frozen=True)
class CleanMaskComparison:
    """The same images with and without the transform; dice is pooled within groups.

    `drop` is `clean_dice` minus the dice of the transformed images, with its paired 95 % bootstrap
    interval over groups; `retention` is the dice of the transformed images divided by `clean_dice`,
    None if that is 0. `paired_groups` is the number of groups that both measurements contain.
    """

    clean_dice: float | None
    drop: float | None
    drop_low: float | None
    drop_high: float | None
    retention: float | None
    paired_groups: int


def dice(rows: pd.DataFrame) -> FloatArray:
    """2 tp / (2 tp + fp + fn) of every row, averaged over classes; 1 if both masks are empty."""
    return _class_mean(_dice(counts_of(rows)))


def iou(rows: pd.DataFrame) -> FloatArray:
    """Tp / (tp + fp + fn) of every row, averaged over classes; 1 if both masks are empty."""
    return _class_mean(_iou(counts_of(rows)))


def _dice(counts: NDArray[np.int64]) -> FloatArray:
    """The dice (N, C) of counts (N, C, 3)."""
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    return _share(2 * tp, 2 * tp + fp + fn)


def _iou(counts: NDArray[np.int64]) -> FloatArray:
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    return _share(tp, tp + fp + fn)


def mask_scores(rows: pd.DataFrame, bootstrap: Bootstrap) -> MaskScores:
    """The scores of `rows` (columns: `MASK_SCHEMA`)."""
    return mask_scores_of([rows], bootstrap)[0]


def mask_scores_of(frames: Sequence[pd.DataFrame], bootstrap: Bootstrap) -> list[MaskScores]:
    """The scores of each of `frames`, such as `class_rows`, which have the same images."""
    if frames[0].empty:
        return [MaskScores(0, 0) for _ in frames]
    of_groups = [_of_groups(rows) for rows in frames]
    numerators, denominators = (
        np.concatenate(part, axis=1) for part in zip(*of_groups, strict=True)
    )
    ends = [both_ends(interval) for interval in bootstrap.ratios(numerators, denominators, SHARES)]
    return [
        _scores(rows, values, ends[3 * k : 3 * k + 3], bootstrap)
        for k, (rows, (values, _)) in enumerate(zip(frames, of_groups, strict=True))
    ]


def _of_groups(rows: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Dice, IoU, and the sum of the dice of images, of each group (groups, 3); and their weights.

    Each of the three scores is the sum of its column divided by the sum of its weights.
    """
    pooled, owner = _pooled(rows), _owners(rows)
    image_sums = np.bincount(owner, _dice(counts_of(rows)).mean(1)).astype(np.float64)
    ones, images = np.ones(len(pooled)), np.bincount(owner).astype(np.float64)
    values = np.column_stack([_dice(pooled).mean(1), _iou(pooled).mean(1), image_sums])
    return values, np.column_stack([ones, ones, images])


_Ends = tuple[float | None, float | None]


def _scores(
    rows: pd.DataFrame, of_groups: FloatArray, ends: Sequence[_Ends], bootstrap: Bootstrap
) -> MaskScores:
    """The scores of `rows` from those of its groups, with the intervals of these."""
    counts = counts_of(rows)
    dice_of_images = _dice(counts)
    true, predicted = counts[..., 0] + counts[..., 2], counts[..., 0] + counts[..., 1]
    shown = (
        values[has_class] for values, has_class in zip(dice_of_images.T, true.T > 0, strict=True)
    )
    hd95, boundary_dice = (
        [pd.Series(values).dropna() for values in distances_of(rows, name).T] for name in _DISTANCES
    )
    return MaskScores(
        len(rows),
        len(of_groups),
        float(of_groups[:, 0].copy().mean()),
        *ends[0],
        float(of_groups[:, 1].copy().mean()),
        *ends[1],
        float(dice_of_images.mean(1).mean()),
        *ends[2],
        _mean_over_classes(float(values.mean()) for values in shown if len(values)),
        _mean_over_classes(_ratios(counts[..., 0], predicted)),
        _mean_over_classes(_ratios(counts[..., 0], true)),
        _mean_over_classes(float(values.median()) for values in hd95 if len(values)),
        _mean_over_classes(
            float(values.to_numpy(dtype=float).mean()) for values in boundary_dice if len(values)
        ),
        *relaxed_scores(rows, bootstrap),
        int(rows["hd95"].notna().sum()),
    )


def compare_masks_with_clean(
    clean: pd.DataFrame, rows: pd.DataFrame, bootstrap: Bootstrap
) -> CleanMaskComparison:
    """The loss of dice of `rows` against `clean`, over their common images (`image_id`).

    Both are rows of one model (columns: `MASK_SCHEMA`), `clean` those of untouched images; each
    resample of `bootstrap` draws the same groups for both.
    """
    common_rows = common_images([clean, rows])
    if common_rows[0].empty:
        return CleanMaskComparison(None, None, None, None, None, 0)
    before, after = map(group_dice, common_rows)
    clean_dice, changed = float(before.mean()), float(after.mean())
    bounds = None if rows is clean else DIFFERENCES_OF_SHARES  # clean images lose nothing
    interval = bootstrap.mean(before - after, bounds)
    retention = changed / clean_dice if clean_dice else None
    return CleanMaskComparison(
        clean_dice, clean_dice - changed, *both_ends(interval), retention, len(before)
    )


def group_dice(rows: pd.DataFrame) -> FloatArray:
    """The dice of the pooled pixels of each group, averaged over classes; groups sorted by name."""
    return _class_mean(_dice(_pooled(rows)))


def class_dice(rows: pd.DataFrame) -> FloatArray:
    """The dice of each class, pooled within groups and averaged over them, (C,)."""
    means: FloatArray = _dice(_pooled(rows)).mean(0)
    return means


def _owners(rows: pd.DataFrame) -> NDArray[np.intp]:
    """The group index of each row; groups are sorted by name."""
    return pd.factorize(rows["group"].to_numpy(dtype=object), sort=True)[0]


def _pooled(rows: pd.DataFrame) -> NDArray[np.int64]:
    """The counts (groups, C, 3) of the pixels of each group."""
    return _summed(counts_of(rows), _owners(rows))


def _summed(counts: NDArray[np.int64], owner: NDArray[np.intp]) -> NDArray[np.int64]:
    sums = np.zeros((int(owner.max(initial=-1)) + 1, *counts.shape[1:]), np.int64)
    np.add.at(sums, owner, counts)
    return sums


def _share(part: NDArray[np.int64], total: NDArray[np.int64]) -> FloatArray:
    parts, totals = part.astype(np.float64), total.astype(np.float64)
    return np.divide(parts, totals, out=np.ones(parts.shape), where=totals > 0)


def _ratios(part: NDArray[np.int64], total: NDArray[np.int64]) -> Iterator[float]:
    """The share of each class with pixels, from counts (N, C) summed over images."""
    for parts, totals in zip(part.sum(0), total.sum(0), strict=True):
        if totals:
            yield int(parts) / int(totals)


def _class_mean(values: FloatArray) -> FloatArray:
    """The means (N,) of `values` (N, C) over classes."""
    means: FloatArray = values.mean(1)
    return means


def _mean_over_classes(values: Iterable[float]) -> float | None:
    """The mean over the classes with a number; None without any."""
    known = list(values)
    return float(np.mean(known)) if known else None


def pooled_scores(counts: NDArray[np.int64], groups: Sequence[str]) -> tuple[float, float]:
    """Dice and IoU, pooled within each group and averaged over groups and classes.

    `counts` (N, 3) or (N, C, 3) are true positive, false positive and false negative pixels of each
    image, or of each class of an image.
    """
    owner = pd.factorize(np.asarray(groups, dtype=object), sort=True)[0]
    pooled = _summed(counts.reshape(len(counts), -1, 3), owner)
    return float(_dice(pooled).mean(1).mean()), float(_iou(pooled).mean(1).mean())
