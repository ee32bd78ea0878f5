"""The scores of one cell of a classifier from its rows: pure functions.

Every share is a fraction in [0, 1]; an undefined number is None.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from robustcli.metrics.intervals import Interval, PairedCounts, paired_interval, wilson_interval
from robustcli.metrics.rows import common_images


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5; `top1_low` and `top1_high` are the 95 % Wilson interval."""

    n: int
    correct: int
    top1: float | None
    top1_low: float | None
    top1_high: float | None
    top5: float | None


@dataclass(frozen=True)
class CleanComparison:
    """The same images with and without the transform.

    `drop` is `clean_top1` minus top-1 of the transformed images, with its paired 95 % interval;
    `retention` is their quotient, None for a `clean_top1` of 0. `paired_n` counts the images that
    both measurements have.
    """

    clean_top1: float | None
    drop: float | None
    retention: float | None
    drop_low: float | None
    drop_high: float | None
    paired_n: int


@dataclass(frozen=True)
class ImageChange:
    """The effect of a transform on images: share unchanged, mean PSNR of the changed ones."""

    unchanged_share: float | None
    psnr_db: float | None


def accuracy(rows: pd.DataFrame) -> Accuracy:
    """Top-1, top-5 and the interval of `rows` (columns: `PREDICTION_SCHEMA`)."""
    n, correct = len(rows), int(is_correct(rows).sum())
    if n == 0:
        return Accuracy(0, 0, None, None, None, None)
    interval = wilson_interval(correct, n)
    return Accuracy(n, correct, correct / n, *interval, float(_is_in_top5(rows).mean()))


def compare_with_clean(clean: pd.DataFrame, rows: pd.DataFrame) -> CleanComparison:
    """The loss of `rows` against `clean`, over the images (`image_id`) that both have.

    Both are rows of one model (columns: `PREDICTION_SCHEMA`), `clean` those of untouched images.
    """
    common_rows = common_images([clean, rows])
    n = len(common_rows[0])
    if n == 0:
        return CleanComparison(None, None, None, None, None, 0)
    before, after = map(is_correct, common_rows)
    clean_top1, top1 = float(before.mean()), float(after.mean())
    counts = (before & after, before & ~after, ~before & after, ~before & ~after)
    low, high = paired_interval(PairedCounts(*(int(count.sum()) for count in counts)))
    retention = top1 / clean_top1 if clean_top1 else None
    return CleanComparison(clean_top1, clean_top1 - top1, retention, low, high, n)


def image_change(inputs: pd.DataFrame) -> ImageChange:
    """The share of unchanged images and the mean PSNR of the others (columns: `INPUT_SCHEMA`).

    The PSNR of an unchanged image is infinite and that of an image whose size changed is undefined,
    so both are left out of the mean; it is None if no image is left.
    """
    if inputs.empty:
        return ImageChange(None, None)
    changed = inputs["changed"].to_numpy(dtype=bool)
    psnr = inputs["psnr_db"].to_numpy(dtype=float)
    finite = psnr[np.isfinite(psnr)]
    return ImageChange(float((~changed).mean()), float(finite.mean()) if len(finite) else None)


@dataclass(frozen=True)
class ClassShare:
    """How many of the `n` images of the class `target` are predicted correctly."""

    target: int
    n: int
    correct: int

    @property
    def share(self) -> float:
        """The accuracy on this class."""
        return self.correct / self.n

    @property
    def interval(self) -> Interval:
        """The 95 % Wilson interval of `share`."""
        return wilson_interval(self.correct, self.n)


def class_shares(rows: pd.DataFrame) -> list[ClassShare]:
    """The accuracy on each class in `rows`, by class index."""
    targets, owner = np.unique(rows["target"].to_numpy(), return_inverse=True)
    n, correct = np.bincount(owner), np.bincount(owner, is_correct(rows))
    return [ClassShare(int(t), int(n[i]), int(correct[i])) for i, t in enumerate(targets)]


@dataclass(frozen=True)
class Confusion:
    """How many images of class `target` are predicted as `prediction`, another class."""

    target: int
    prediction: int
    count: int


def confusions(rows: pd.DataFrame, most: int) -> list[Confusion]:
    """The `most` frequent confusions of `rows`, ties by the indices of the classes."""
    wrong = rows.loc[~is_correct(rows), ["target", "prediction"]]
    counts = wrong.groupby(["target", "prediction"], as_index=False).agg(n=("target", "size"))
    counts = counts.sort_values("n", ascending=False, kind="stable").head(most)
    return [Confusion(int(t), int(p), int(n)) for t, p, n in counts.to_numpy()]


def is_correct(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether the prediction of each row is its target."""
    correct: NDArray[np.bool_] = (rows["prediction"] == rows["target"]).to_numpy(dtype=bool)
    return correct


def _is_in_top5(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether the target is in the list `top5`, which is shorter when there are fewer classes."""
    lists = pa.Table.from_pandas(rows[["top5"]], preserve_index=False).column(0).combine_chunks()
    owner = np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy())
    hit = lists.flatten().to_numpy() == rows["target"].to_numpy(dtype=int)[owner]
    in_top5: NDArray[np.bool_] = np.bincount(owner[hit], minlength=len(lists)) > 0
    return in_top5
