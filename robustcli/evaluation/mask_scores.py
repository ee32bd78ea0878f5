"""The numbers of one cell of a segmenter from its rows of pixel counts: pure functions.

Every share is a fraction in [0, 1]; a number that cannot be given is None.

An image, or a group, without foreground in which none is predicted is right: its dice and IoU are
1. With any pixel predicted they are 0. (So nnU-Net's and MONAI's `ignore_empty=False`; counting
such images as missing instead would hide false alarms.) `dice_foreground` leaves images without
true foreground out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.evaluation.bootstrap import Bootstrap
from robustcli.evaluation.intervals import Interval
from robustcli.evaluation.relaxed import relaxed_scores

_COUNTS = ["tp", "fp", "fn"]
Values = NDArray[np.float64]


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
class MaskComparison:
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


def dice(counts: pd.DataFrame) -> Values:
    """2 tp / (2 tp + fp + fn) of every row; 1 where neither mask has a pixel."""
    return _share(2 * counts["tp"], 2 * counts["tp"] + counts["fp"] + counts["fn"])


def iou(counts: pd.DataFrame) -> Values:
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


def compare_masks(clean: pd.DataFrame, rows: pd.DataFrame, bootstrap: Bootstrap) -> MaskComparison:
    """What `rows` lost against `clean`, over the images (`image_id`) that both have.

    Args:
        clean: Rows of one model on untouched images (columns: `store.MASK_SCHEMA`).
        rows: Rows of the same model on transformed images.
        bootstrap: The run's resamples; each takes the same groups of both.
    """
    before, after = paired_dice(clean, rows)
    if not len(before):
        return MaskComparison(None, None, None, None, None, 0)
    clean_dice, changed = float(before.mean()), float(after.mean())
    interval = bootstrap.mean(before - after)
    retention = changed / clean_dice if clean_dice else None
    return MaskComparison(
        clean_dice, clean_dice - changed, *_ends(interval), retention, len(before)
    )


def paired_dice(one: pd.DataFrame, other: pd.DataFrame) -> tuple[Values, Values]:
    """The dice of each group in `one` and in `other`, pixels pooled, groups in the same order.

    Of the images (`image_id`) that both have; every value, interval and p-value of a difference is
    made of these.
    """
    both = set(one["image_id"]) & set(other["image_id"])
    first, second = (dice(_pooled(rows[rows["image_id"].isin(both)])) for rows in (one, other))
    return first, second


def _pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """The counts summed within each group, groups sorted by name."""
    return rows.groupby("group", sort=True)[_COUNTS].sum()


def _image_interval(
    groups: pd.Series[str], values: Values, bootstrap: Bootstrap
) -> Interval | None:
    owner = pd.factorize(groups.to_numpy(dtype=object), sort=True)[0]
    images = np.bincount(owner).astype(np.float64)
    return bootstrap.ratio(np.bincount(owner, values).astype(np.float64), images)


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def _share(part: pd.Series[int], whole: pd.Series[int]) -> Values:
    parts, wholes = part.to_numpy(dtype=float), whole.to_numpy(dtype=float)
    return np.divide(parts, wholes, out=np.ones(len(parts)), where=wholes > 0)


def _ratio(part: pd.Series[int], whole: pd.Series[int]) -> float | None:
    total = int(whole.sum())
    return int(part.sum()) / total if total else None


def _mean(values: Values) -> float | None:
    return float(values.mean()) if len(values) else None


def _median(values: pd.Series[float]) -> float | None:
    known = values.dropna()
    return float(known.median()) if len(known) else None
