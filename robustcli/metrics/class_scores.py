"""The numbers of one cell from its rows: pure functions.

Every share is a fraction in [0, 1]; a number that cannot be given is None.
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
    """How often the rows are right; `top1_low` and `top1_high` are the 95 % Wilson interval."""

    n: int
    correct: int
    top1: float | None
    top1_low: float | None
    top1_high: float | None
    top5: float | None


@dataclass(frozen=True)
class Comparison:
    """The same images with and without the transform.

    Args:
        clean_top1: Top-1 of the untouched images.
        drop: `clean_top1` minus top-1 of the transformed images.
        retention: Top-1 of the transformed images over `clean_top1`; None when that is 0.
        drop_low: Lower end of the paired 95 % interval of `drop`.
        drop_high: Its upper end.
        paired_n: Images that both measurements have.
    """

    clean_top1: float | None
    drop: float | None
    retention: float | None
    drop_low: float | None
    drop_high: float | None
    paired_n: int


@dataclass(frozen=True)
class ImageChange:
    """What the transform did to the images: share left unchanged, mean PSNR of the changed ones."""

    unchanged_share: float | None
    psnr_db: float | None


def accuracy(rows: pd.DataFrame) -> Accuracy:
    """Top-1, top-5 and the interval of `rows` (columns: `store.PREDICTION_SCHEMA`)."""
    n, correct = len(rows), int(is_correct(rows).sum())
    if n == 0:
        return Accuracy(0, 0, None, None, None, None)
    interval = wilson_interval(correct, n)
    in_top5 = _is_in_top5(rows)
    return Accuracy(n, correct, correct / n, *interval, float(in_top5.mean()))


def compare(clean: pd.DataFrame, rows: pd.DataFrame) -> Comparison:
    """What `rows` lost against `clean`, over the images (`image_id`) that both have.

    Args:
        clean: Rows of one model on untouched images (columns: `store.PREDICTION_SCHEMA`).
        rows: Rows of the same model on transformed images.
    """
    both = common_images([clean, rows])
    n = len(both[0])
    if n == 0:
        return Comparison(None, None, None, None, None, 0)
    before, after = map(is_correct, both)
    clean_top1, top1 = float(before.mean()), float(after.mean())
    low, high = paired_interval(_paired_counts(before, after))
    retention = top1 / clean_top1 if clean_top1 else None
    return Comparison(clean_top1, clean_top1 - top1, retention, low, high, n)


def image_change(inputs: pd.DataFrame) -> ImageChange:
    """The share of unchanged images and the mean PSNR of the others (`store.INPUT_SCHEMA`).

    The PSNR of an unchanged image is infinite and that of an image whose size changed does not
    exist, so both are left out of the mean; it is None when no image is left.
    """
    if inputs.empty:
        return ImageChange(None, None)
    changed = inputs["changed"].to_numpy(dtype=bool)
    psnr = inputs["psnr_db"].to_numpy(dtype=float)
    finite = psnr[np.isfinite(psnr)]
    return ImageChange(float((~changed).mean()), float(finite.mean()) if len(finite) else None)


def _paired_counts(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> PairedCounts:
    counts = (before & after, before & ~after, ~before & after, ~before & ~after)
    return PairedCounts(*(int(count.sum()) for count in counts))


@dataclass(frozen=True)
class ClassShare:
    """How often images of one class are right.

    Args:
        target: Index of the class.
        n: Its images.
        correct: Those that are right.
    """

    target: int
    n: int
    correct: int

    @property
    def share(self) -> float:
        """The share that is right."""
        return self.correct / self.n

    @property
    def interval(self) -> Interval:
        """The 95 % Wilson interval of `share`."""
        return wilson_interval(self.correct, self.n)


def class_shares(rows: pd.DataFrame) -> list[ClassShare]:
    """The share of each class that `rows` have, by index."""
    targets, owner = np.unique(rows["target"].to_numpy(), return_inverse=True)
    n, correct = np.bincount(owner), np.bincount(owner, is_correct(rows))
    return [ClassShare(int(t), int(n[i]), int(correct[i])) for i, t in enumerate(targets)]


@dataclass(frozen=True)
class Confusion:
    """How many images of class `target` are called `prediction`, another class."""

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
