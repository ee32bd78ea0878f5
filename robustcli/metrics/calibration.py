"""Calibration: how far the probability of a classifier's prediction can be trusted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.metrics.class_scores import is_correct
from robustcli.metrics.intervals import Bootstrap, FloatArray, Interval

BINS = 15
_DRAWS, _FEWEST_DRAWS, _NUMBERS = 2_000, 200, 5 * 10**6


@dataclass(frozen=True)
class Calibration:
    """The calibration of one cell with `n` images.

    `error` is the share of wrong predictions, `confidence` the mean probability of a prediction,
    `ece` the expected calibration error over `BINS` bins of equal width, `aurc` the area under the
    risk-coverage curve. `brier` is the top-label Brier score: the mean of (probability of the
    prediction - 1 if it is correct, else 0)**2, which needs no other class's probability. The
    intervals are 95 % percentile bootstrap intervals; None with one image.
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


def calibration(rows: pd.DataFrame, bootstrap: Bootstrap) -> Calibration | None:
    """The calibration of the rows of one cell (columns: `PREDICTION_SCHEMA`); None without rows.

    Of `bootstrap` seed and confidence count; there are 2,000 resamples, fewer of many images.

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
    ece_low, ece_high, brier_low, brier_high = None, None, None, None
    if n > 1:
        draws = min(_DRAWS, max(_FEWEST_DRAWS, _NUMBERS // n))
        means = replace(bootstrap, draws=draws).means(np.column_stack([gaps, squares]))
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
        risk_coverage_area(confidence, correct == 0),
    )


@dataclass(frozen=True)
class ReliabilityBin:
    """The images (at least one) whose confidence lies in one bin, and their mean confidence."""

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
    """The mean, over k, of the error among the k most confident images; lower is better.

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


def _confidence(rows: pd.DataFrame) -> FloatArray:
    # A softmax in single precision can exceed 1 by its rounding.
    return np.clip(rows["probability"].to_numpy(dtype=np.float64), 0, 1)


def _bins(confidence: FloatArray) -> NDArray[np.int64]:
    """The bin of each confidence; bin 0 ends at 1 / BINS, its upper end included."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _ends(draws: FloatArray, confidence: float) -> Interval:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(float(low), float(high))
