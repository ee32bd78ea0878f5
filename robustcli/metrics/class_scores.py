"""Computes the scores and the calibration of one cell of a classifier, with pure functions of rows.

Every share is a fraction in [0, 1]; an undefined number is None.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from robustcli.core.seeds import identity_seed
from robustcli.metrics.columns import common_images
from robustcli.metrics.intervals import (
    FEWEST_UNITS,
    SHARES,
    Bootstrap,
    FloatArray,
    Interval,
    PairedCounts,
    both_ends,
    paired_interval,
    wilson_interval,
)

ClassIndices = NDArray[np.integer]
_F1_DRAWS, _NUMBERS_AT_ONCE = 2_000, 5 * 10**6


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
    `retention` is top-1 of the transformed images divided by `clean_top1`, None if that is 0.
    `paired_n` is the number of images that both measurements contain.
    """

    clean_top1: float | None
    drop: float | None
    retention: float | None
    drop_low: float | None
    drop_high: float | None
    paired_n: int


@dataclass(frozen=True)
class ImageChange:
    """The effect of a transform on images: unchanged share, mean PSNR of the changed images."""

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
    """The loss of accuracy of `rows` against `clean`, over their common images (`image_id`).

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
    so both are excluded from the mean, which is None if no other image exists.
    """
    if inputs.empty:
        return ImageChange(None, None)
    changed = inputs["changed"].to_numpy(dtype=bool)
    psnr = inputs["psnr_db"].to_numpy(dtype=float)
    finite = psnr[np.isfinite(psnr)]
    return ImageChange(float((~changed).mean()), float(finite.mean()) if len(finite) else None)


@dataclass(frozen=True)
class ClassOutcome:
    """The counts of one class in the confusion matrix of a classifier.

    Args:
        target: Index of the class.
        n: Number of images of the class.
        predicted: Number of images predicted as the class; `n` and `predicted` are not both 0.
        correct: Number of images of the class predicted as the class.
    """

    target: int
    n: int
    predicted: int
    correct: int

    @property
    def precision(self) -> float | None:
        """The share of correct images among those predicted as the class; None without any."""
        return self.correct / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """The share of the images of the class predicted as the class; None without any."""
        return self.correct / self.n if self.n else None

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 if one of them is 0 or undefined."""
        return 2 * self.correct / (self.n + self.predicted)


def class_outcomes(targets: ClassIndices, predictions: ClassIndices) -> list[ClassOutcome]:
    """The outcome of each class that is true or predicted for some image, sorted by index.

    Args:
        targets: The true class of each image, (n,).
        predictions: The predicted class of each image, (n,).
    """
    classes, indices = np.unique(np.concatenate([targets, predictions]), return_inverse=True)
    true, called = indices[: len(targets)], indices[len(targets) :]
    n, predicted = (np.bincount(part, minlength=len(classes)) for part in (true, called))
    correct = np.bincount(true[true == called], minlength=len(classes))
    columns = (column.tolist() for column in (classes, n, predicted, correct))
    return [ClassOutcome(*line) for line in zip(*columns, strict=True)]


def confusion_matrix(
    targets: ClassIndices, predictions: ClassIndices
) -> tuple[list[int], NDArray[np.int64]]:
    """The classes of `class_outcomes`, and image counts by true and predicted class, (K, K)."""
    classes, indices = np.unique(np.concatenate([targets, predictions]), return_inverse=True)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, tuple(np.split(indices, 2)), 1)
    return classes.tolist(), counts


def macro_f1(targets: ClassIndices, predictions: ClassIndices) -> float:
    """The unweighted mean F1 over the classes of `class_outcomes`; NaN without images.

    The same as scikit-learn's `f1_score(average="macro")`.
    """
    outcomes = class_outcomes(targets, predictions)
    return sum(line.f1 for line in outcomes) / len(outcomes) if outcomes else float("nan")


FEWEST_PER_CLASS = 5
"""Smallest number of images per class, on average, for an interval of the macro F1. With fewer, the
macro F1 itself is too low, often by more than any interval (`benchmarks/intervals.py`)."""


@dataclass(frozen=True)
class MacroF1:
    """The macro F1 of `n` images with its 95 % bootstrap interval.

    The interval is None for fewer than `FEWEST_UNITS` images, or `FEWEST_PER_CLASS` per class.
    """

    n: int
    f1: float
    f1_low: float | None
    f1_high: float | None


def macro_f1_with_interval(rows: pd.DataFrame, bootstrap: Bootstrap) -> MacroF1 | None:
    """The macro F1 of the rows of one cell (columns: `PREDICTION_SCHEMA`); None without rows.

    The interval is that of `Bootstrap` with 2,000 resamples of the images; only the seed and the
    confidence level of `bootstrap` are used. A resample is a multinomial draw of the counts of
    images by pair of true and predicted class. A class without images and predictions in a resample
    is excluded from the mean of that resample.

    Few images of a class make its F1 too low, and that of resamples once more, by up to the same
    amount. The lower end is corrected for the bias of the resamples, the upper end for both.

    Source: B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap, 1993, sections 10.2 (bias)
    and 13.3 (percentiles).
    """
    n = len(rows)
    if not n:
        return None
    targets, predictions = (rows[name].to_numpy(int) for name in ("target", "prediction"))
    value = macro_f1(targets, predictions)
    classes = len(np.union1d(targets, predictions))
    draws = _resampled_f1(targets, predictions, bootstrap)
    ends = bootstrap.ends(draws, n, SHARES) if n >= FEWEST_PER_CLASS * classes else None
    if ends is None:
        return MacroF1(n, value, None, None)
    bias = max(0.0, value - float(draws.mean()))
    low, high = min(value, ends.low + bias), max(value, ends.high + 2 * bias)
    return MacroF1(n, value, low, min(1.0, high))


def _resampled_f1(
    targets: ClassIndices, predictions: ClassIndices, bootstrap: Bootstrap
) -> NDArray[np.float64]:
    """The macro F1 of resamples of the images, (draws,)."""
    classes, indices = np.unique(np.concatenate([targets, predictions]), return_inverse=True)
    pairs = np.stack(np.split(indices, 2))
    (true, called), sizes = np.unique(pairs, axis=1, return_counts=True)  # (cells,)
    n, cells = len(targets), len(sizes)
    generator = np.random.default_rng(identity_seed(bootstrap.seed, "macro-f1"))
    at_once = max(1, _NUMBERS_AT_ONCE // max(cells, len(classes)))
    values = []
    for start in range(0, _F1_DRAWS, at_once):
        size = min(at_once, _F1_DRAWS - start)
        counts = generator.multinomial(n, sizes / n, size=size)  # (draws, cells)
        totals = _by_class(counts, true, len(classes)) + _by_class(counts, called, len(classes))
        right = _by_class(counts * (true == called), true, len(classes)).astype(np.float64)
        f1 = np.divide(2 * right, totals, out=np.zeros_like(right), where=totals > 0)
        values.append(f1.sum(axis=1) / (totals > 0).sum(axis=1))
    return np.concatenate(values)


def _by_class(counts: ClassIndices, owner: ClassIndices, classes: int) -> NDArray[np.int64]:
    """Sums counts (draws, cells) by class, (draws, classes); `owner` is the class of each cell."""
    order = np.argsort(owner, kind="stable")
    members, starts = np.unique(owner[order], return_index=True)
    sums = np.zeros((len(counts), classes), np.int64)
    sums[:, members] = np.add.reduceat(counts[:, order], starts, axis=1)
    return sums


@dataclass(frozen=True)
class Confusion:
    """The number of images of class `target` that are predicted as another class, `prediction`."""

    target: int
    prediction: int
    count: int


def confusions(rows: pd.DataFrame, most: int) -> list[Confusion]:
    """The `most` frequent confusions of `rows`; ties are sorted by class indices."""
    wrong = rows.loc[~is_correct(rows), ["target", "prediction"]]
    counts = wrong.groupby(["target", "prediction"], as_index=False).agg(n=("target", "size"))
    counts = counts.sort_values("n", ascending=False, kind="stable").head(most)
    return [Confusion(int(t), int(p), int(n)) for t, p, n in counts.to_numpy()]


def is_correct(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether the prediction of each row is its target."""
    correct: NDArray[np.bool_] = (rows["prediction"] == rows["target"]).to_numpy(dtype=bool)
    return correct


def _is_in_top5(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether the target is in the list `top5`, which is shorter for fewer than five classes."""
    lists = pa.Table.from_pandas(rows[["top5"]], preserve_index=False).column(0).combine_chunks()
    owner = np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy())
    hit = lists.flatten().to_numpy() == rows["target"].to_numpy(dtype=int)[owner]
    in_top5: NDArray[np.bool_] = np.bincount(owner[hit], minlength=len(lists)) > 0
    return in_top5


# Calibration: how well predicted probabilities match the observed accuracy.

BINS = 15
FEWEST_CALIBRATED = 100
"""Smallest number of images for an interval of the calibration error. Over fewer images, it often
lacks the true error (`benchmarks/intervals.py`), because most bins have few images or none."""
_GROUPS, _AREA_DRAWS = 50, 1_000
"""Numbers of groups of similar confidence and of resamples, for the interval of `aurc`."""
_DRAWS, _FEWEST_DRAWS, _NUMBERS = 2_000, 200, 5 * 10**6


@dataclass(frozen=True)
class Calibration:
    """The calibration of one cell with `n` images.

    `error` is the share of wrong predictions, `confidence` the mean probability of a prediction,
    `ece` the expected calibration error over `BINS` bins of equal width, `aurc` the area under the
    risk-coverage curve. `brier` is the top-label Brier score: the mean of (probability of the
    prediction - 1 if it is correct, else 0)**2, which only needs the probability of the predicted
    class. The intervals are 95 % bootstrap intervals, that of `ece` by `ece_interval`; None for
    fewer than `FEWEST_UNITS` images, that of `ece` for fewer than `FEWEST_CALIBRATED`.
    """

    n: int
    error: float
    confidence: float
    ece: float
    ece_low: float | None
    ece_high: float | None
    brier: float
    brier_low: float | None
    brier_high: float | None
    aurc: float
    aurc_low: float | None
    aurc_high: float | None


def calibration(rows: pd.DataFrame, bootstrap: Bootstrap) -> Calibration | None:
    """The calibration of the rows of one cell (columns: `PREDICTION_SCHEMA`).

    None without rows, and if a probability is NaN, which only runs of older versions contain.

    Only the seed and the confidence level of `bootstrap` are used; the number of resamples is
    2,000, and smaller for many images.

    Sources: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, On calibration of modern neural networks,
    ICML 2017 (expected calibration error); G. W. Brier, Monthly Weather Review 78 (1950).
    """
    n = len(rows)
    confidence, correct = _confidence(rows), is_correct(rows).astype(np.float64)
    if not n or np.isnan(confidence).any():
        return None
    in_bin = np.equal.outer(_bins(confidence), np.arange(BINS))  # (n, BINS)
    gaps = np.where(in_bin, (confidence - correct)[:, None], 0.0)
    squares = (confidence - correct) ** 2
    ece_low, ece_high, brier_low, brier_high, aurc_low, aurc_high = (None,) * 6
    aurc = risk_coverage_area(confidence, correct == 0)
    mean_gaps = gaps.mean(axis=0)
    ece = float(np.abs(mean_gaps).sum())
    if n >= FEWEST_UNITS:
        draws = min(_DRAWS, max(_FEWEST_DRAWS, _NUMBERS // n))
        bootstrap = replace(bootstrap, draws=draws)
        means = bootstrap.means(np.column_stack([gaps, squares]))
        areas = _resampled_areas(confidence, correct == 0, bootstrap)
        aurc_low, aurc_high = both_ends(bootstrap.ends(areas, n, SHARES))
        if n >= FEWEST_CALIBRATED:
            ece_low, ece_high = ece_interval(mean_gaps, means[:, :BINS], bootstrap, n)
        brier_low, brier_high = both_ends(bootstrap.ends(means[:, BINS], n, SHARES))
    return Calibration(
        n,
        1 - float(correct.mean()),
        float(confidence.mean()),
        ece,
        ece_low,
        ece_high,
        float(squares.mean()),
        brier_low,
        brier_high,
        aurc,
        aurc_low,
        aurc_high,
    )


def ece_interval(gaps: FloatArray, draws: FloatArray, bootstrap: Bootstrap, n: int) -> Interval:
    """The interval of the expected calibration error of `n` images, by inverting a test.

    Noise in a bin increases the error, and that of a resample again, so that percentiles of
    resamples are too high: those of a calibrated model often exclude its true error, 0. Instead,
    the interval contains the errors t with which the observed error is likely: t is distributed
    over the bins, and the noise of the resamples is added. The lower end assumes the observed
    distribution of t. The bias is smallest if t is distributed like the noise, which the upper end
    allows too.

    Args:
        gaps: Mean of confidence - correct per bin, over all images, (BINS,).
        draws: The same of resamples, (draws, BINS).
        bootstrap: The confidence level.
        n: Number of images, at least 3.
    """
    ece, noise = float(np.abs(gaps).sum()), draws - gaps
    shapes = [gaps, noise.std(axis=0)]
    errors = [_largest_error(shape, noise, ece) for shape in shapes if shape.any()]
    intervals = [ends for ends in (bootstrap.ends(e, n) for e in errors) if ends is not None]
    if not intervals:
        return Interval(ece, ece)  # neither an error nor noise
    return Interval(min(ece, intervals[0].low), max(ece, *(ends.high for ends in intervals)))


def _largest_error(shape: FloatArray, noise: FloatArray, ece: float) -> FloatArray:
    """The largest t >= 0 with sum(abs(t * shape + noise)) <= `ece`, for each row of `noise`.

    0 if there is none. `shape` (BINS,) is scaled, so that the sum of its absolute values is 1.
    """
    bins = shape != 0
    shape = shape / np.abs(shape).sum()
    # The sum is convex in t, and smallest at the weighted median of the zeros of its terms.
    zeros = -noise[:, bins] / shape[bins]
    order = np.argsort(zeros, axis=1)
    weights = np.abs(shape[bins])[order].cumsum(axis=1)
    median = order[np.arange(len(order)), np.argmax(weights >= 0.5, axis=1)]
    low = np.maximum(zeros[np.arange(len(zeros)), median], 0.0)
    high = low + ece + np.abs(noise).sum(axis=1)

    def fits(t: FloatArray) -> NDArray[np.bool_]:
        fitting: NDArray[np.bool_] = np.abs(t[:, None] * shape + noise).sum(axis=1) <= ece
        return fitting

    some = fits(low)
    for _ in range(40):
        middle = (low + high) / 2
        inside = fits(middle)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.where(some, low, 0.0)


@dataclass(frozen=True)
class ReliabilityBin:
    """The images (at least one) with a confidence in one bin, and their mean confidence."""

    n: int
    correct: int
    confidence: float


def reliability(rows: pd.DataFrame) -> list[ReliabilityBin]:
    """The non-empty bins of `ece`, by confidence; none if a probability is NaN."""
    confidence, correct = _confidence(rows), is_correct(rows)
    if np.isnan(confidence).any():
        return []
    bins = _bins(confidence)
    n, correct_counts = (
        np.bincount(bins, minlength=BINS),
        np.bincount(bins, correct, minlength=BINS),
    )
    sums = np.bincount(bins, confidence, minlength=BINS)
    return [
        ReliabilityBin(int(n[b]), int(correct_counts[b]), float(sums[b] / n[b]))
        for b in range(BINS)
        if n[b]
    ]


def risk_coverage_area(confidence: FloatArray, wrong: NDArray[np.bool_]) -> float:
    """The error among the k most confident images, averaged over k; lower is better.

    An uninformative confidence gives the error of all images. Images of equal confidence count as
    their mean, so the order of rows does not matter.

    Source: Y. Geifman, R. El-Yaniv, Selective classification for deep neural networks, NeurIPS
    2017; Y. Geifman, G. Uziel, R. El-Yaniv, Bias-reduced uncertainty estimation, ICLR 2019.
    """
    _, level = np.unique(-confidence, return_inverse=True)  # the most confident level is 0
    errors = np.bincount(level, wrong) / np.bincount(level)
    in_order = np.sort(level)
    risks = np.cumsum(errors[in_order]) / np.arange(1, len(wrong) + 1)
    return float(risks.mean())


def _resampled_areas(
    confidence: FloatArray, wrong: NDArray[np.bool_], bootstrap: Bootstrap
) -> FloatArray:
    """The risk-coverage areas of resamples of the images, (draws,).

    Images are merged into at most `_GROUPS` groups of similar confidence, which is treated as equal
    within a group. One multinomial draw gives the numbers of correct and wrong images of each group
    in a resample. The bias that the grouping causes in the area of all images is subtracted.
    """
    _, level, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    if len(sizes) > _GROUPS:
        before = np.cumsum(sizes) - sizes
        level = (before * _GROUPS // len(wrong))[level]
    counts = np.bincount(2 * level + wrong, minlength=2 * (int(level.max()) + 1))
    generator = np.random.default_rng(identity_seed(bootstrap.seed, "risk-coverage"))
    draw_count = min(bootstrap.draws, _AREA_DRAWS)
    draws = generator.multinomial(len(wrong), counts / len(wrong), size=draw_count)
    all_images = _area_of_groups(counts.reshape(1, -1, 2))[0]
    areas = _area_of_groups(draws.reshape(draw_count, -1, 2))
    areas += risk_coverage_area(confidence, wrong) - all_images
    return np.clip(areas, 0, 1, out=areas)


def _area_of_groups(counts: NDArray[np.int64]) -> FloatArray:
    """The areas (draws,) for counts (draws, groups, correct and wrong), most confident group first.

    Within a group of N images of which W are wrong, after M images of which S are wrong, the sum
    of (S + j W/N) / (M + j) over j = 1 ... N is W + (S - M W/N) (H(M + N) - H(M)), with the
    harmonic numbers H.
    """
    sizes, wrong = counts.sum(axis=2), counts[:, :, 1]
    n = int(sizes[0].sum())
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])
    after = np.cumsum(sizes, axis=1)
    before, wrong_before = after - sizes, np.cumsum(wrong, axis=1) - wrong
    rate = wrong / np.maximum(sizes, 1)
    sums = wrong + (wrong_before - before * rate) * (harmonic[after] - harmonic[before])
    areas: FloatArray = sums.sum(axis=1) / n
    return areas


def _confidence(rows: pd.DataFrame) -> FloatArray:
    # A softmax in single precision can exceed 1 because of rounding.
    return np.clip(rows["probability"].to_numpy(dtype=np.float64), 0, 1)


def _bins(confidence: FloatArray) -> NDArray[np.int64]:
    """The bin of each confidence; bin 0 is [0, 1 / BINS], including its upper end."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
