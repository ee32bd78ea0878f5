"""Calibration of classifiers: how well predicted probabilities match the observed accuracy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.core.seeds import identity_seed
from robustcli.metrics.class_scores import is_correct
from robustcli.metrics.intervals import Bootstrap, FloatArray, Interval

BINS = 15
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
    class. The intervals are 95 % percentile bootstrap intervals; None for a single image.
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
    """The calibration of the rows of one cell (columns: `PREDICTION_SCHEMA`); None without rows.

    Only the seed and the confidence level of `bootstrap` are used; the number of resamples is
    2,000, and smaller for many images.

    Sources: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, On calibration of modern neural networks,
    ICML 2017 (expected calibration error); G. W. Brier, Monthly Weather Review 78 (1950).
    """
    n = len(rows)
    if not n:
        return None
    confidence, correct = _confidence(rows), is_correct(rows).astype(np.float64)
    in_bin = np.equal.outer(_bins(confidence), np.arange(BINS))  # (n, BINS)
    gaps = np.where(in_bin, (confidence - correct)[:, None], 0.0)
    squares = (confidence - correct) ** 2
    ece_low, ece_high, brier_low, brier_high, aurc_low, aurc_high = (None,) * 6
    aurc = risk_coverage_area(confidence, correct == 0)
    if n > 1:
        draws = min(_DRAWS, max(_FEWEST_DRAWS, _NUMBERS // n))
        bootstrap = replace(bootstrap, draws=draws)
        means = bootstrap.means(np.column_stack([gaps, squares]))
        areas = _resampled_areas(confidence, correct == 0, bootstrap)
        aurc_low, aurc_high = _ends(areas, bootstrap.confidence)
        ece_low, ece_high = _ends(np.abs(means[:, :BINS]).sum(axis=1), bootstrap.confidence)
        brier_low, brier_high = _ends(means[:, BINS], bootstrap.confidence)
    return Calibration(
        n,
        1 - float(correct.mean()),
        float(confidence.mean()),
        float(np.abs(gaps.sum(axis=0)).sum() / n),
        ece_low,
        ece_high,
        float(squares.mean()),
        brier_low,
        brier_high,
        aurc,
        aurc_low,
        aurc_high,
    )


@dataclass(frozen=True)
class ReliabilityBin:
    """The images (at least one) with a confidence in one bin, and their mean confidence."""

    n: int
    correct: int
    confidence: float


def reliability(rows: pd.DataFrame) -> list[ReliabilityBin]:
    """The non-empty bins of `ece`, by confidence."""
    confidence, correct = _confidence(rows), is_correct(rows)
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


def _ends(draws: FloatArray, confidence: float) -> Interval:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(float(low), float(high))
