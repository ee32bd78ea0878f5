"""Confidence intervals of shares and of paired differences, and bootstrap over groups."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustcli.core.seeds import identity_seed

FloatArray = NDArray[np.float64]
DRAWS = 10_000
FEWEST_UNITS = 3
"""Smallest number of groups (or images) for a bootstrap interval."""
_AT_ONCE = 1_000  # draws per chunk, to limit memory: counts are converted to 64 bits
_NUMBERS_AT_ONCE = 2**23
_CACHED_BYTES = 2**27
_EQUAL = 1e-12  # more than the rounding errors of the mean of equal scores


class Interval(NamedTuple):
    """The ends of a confidence interval, in the unit of the estimate."""

    low: float
    high: float


SHARES, DIFFERENCES_OF_SHARES = Interval(0.0, 1.0), Interval(-1.0, 1.0)
"""Bounds of scores such as accuracy and dice, and of their differences."""


def both_ends(interval: Interval | None) -> tuple[float | None, float | None]:
    """The ends of an interval; None and None without one."""
    return (None, None) if interval is None else interval


class PairedCounts(NamedTuple):
    """Images that both, only the first, only the second and neither measurement got right."""

    both: int
    first_only: int
    second_only: int
    neither: int


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> Interval:
    """The Wilson score interval of the share `correct / n` with coverage `confidence`.

    Raises:
        ValueError: `correct` is not in [0, n], or `n` is 0.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    JASA 22 (1927), 209-212.
    """
    # The tests compare with SciPy's `proportion_ci`, which takes almost a second to import.
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"`correct` must be 0 to `n` and `n` at least 1, not {correct} of {n}.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = correct / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return Interval(
        0.0 if correct == 0 else max(0.0, centre - half),
        1.0 if correct == n else min(1.0, centre + half),
    )


def paired_interval(counts: PairedCounts, confidence: float = 0.95) -> Interval:
    """The interval of (first share - second share) of one set of images, within [-1, 1].

    It combines the Wilson intervals of the two shares and accounts for their correlation.
    Therefore, unlike the usual Wald interval, it keeps its coverage near 0 and 1.

    Source: R. G. Newcombe, Improved confidence intervals for the difference between binomial
    proportions based on paired data, Statistics in Medicine 17 (1998), 2635-2650, method 10.
    """
    n = sum(counts)
    first, second = counts.both + counts.first_only, counts.both + counts.second_only
    low_1, high_1 = wilson_interval(first, n, confidence)
    low_2, high_2 = wilson_interval(second, n, confidence)
    share_1, share_2 = first / n, second / n
    phi = _correlation(counts)
    below = _joined(share_1 - low_1, high_2 - share_2, phi)
    above = _joined(high_1 - share_1, share_2 - low_2, phi)
    difference = share_1 - share_2
    return Interval(difference - below, difference + above)


def _joined(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first * first - 2 * phi * first * second + second * second))


def _correlation(counts: PairedCounts) -> float:
    """Newcombe's phi: a positive correlation is moved towards 0 by half an image pair."""
    both, first_only, second_only, neither = counts
    first, second, n = both + first_only, both + second_only, sum(counts)
    margins = first * (n - first) * second * (n - second)
    if margins == 0:
        return 0.0
    product = both * neither - first_only * second_only
    return (max(product - n / 2, 0.0) if product > 0 else product) / math.sqrt(margins)


def mean_interval(values: FloatArray, bounds: Interval, confidence: float = 0.95) -> Interval:
    """The adjusted Wald interval of the mean of `values`, which are within `bounds`.

    Two pseudo-units, one at each bound, are added, so that the width is not 0 if all values are
    equal.

    Source: D. G. Bonett, R. M. Price, Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data, J. Educ. Behav. Stat. 37 (2012), for differences of
    -1, 0 and 1.
    """
    extended = np.append(values, bounds)
    mean = float(extended.mean())
    half = NormalDist().inv_cdf((1 + confidence) / 2) * float(extended.std())
    half /= math.sqrt(len(extended))
    return Interval(max(bounds.low, mean - half), min(bounds.high, mean + half))


@dataclass(frozen=True)
class Bootstrap:
    """Expanded percentile intervals by resampling entire groups, such as patients.

    Images of one group are correlated, so an interval over images would be too narrow. The
    resamples only depend on the run's seed and the number of groups: the same rows give the same
    interval, and all models and transforms of a run use the same resamples.

    Plain percentiles are too narrow for few groups, because resamples vary less than samples do and
    a normal quantile replaces that of Student's t distribution. The expanded interval takes
    percentiles farther out, so that it is as wide as the t interval if the resampled means are
    normal. `benchmarks/intervals.py` measures its coverage.

    If all groups have the same score, all resamples are equal, although other groups may have other
    scores. The interval is then the `mean_interval` of scores within `bounds`, if these are given;
    without `bounds` it has no width, as the score of clean images relative to themselves.

    Sources: B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap, 1993, section 8.3
    (resampling the independent units); T. C. Hesterberg, What teachers should know about the
    bootstrap, The American Statistician 69 (2015), section 4.3 (expanded percentile interval).
    """

    seed: int
    draws: int = DRAWS
    confidence: float = 0.95

    def mean(self, values: FloatArray, bounds: Interval | None = None) -> Interval | None:
        """The interval of the mean of `values` within `bounds`, one per group.

        None for fewer than FEWEST_UNITS groups, here and in the other methods.
        """
        ones = np.ones((len(values), 1))
        return self.ratios(values[:, None], ones, bounds)[0]

    def ratio(
        self, numerators: FloatArray, denominators: FloatArray, bounds: Interval | None = None
    ) -> Interval | None:
        """The interval of sum(numerators) / sum(denominators), both one per group; see `mean`."""
        return self.ratios(numerators[:, None], denominators[:, None], bounds)[0]

    def ratios(
        self, numerators: FloatArray, denominators: FloatArray, bounds: Interval | None = None
    ) -> list[Interval | None]:
        """The interval of `ratio` for each column of two arrays (groups, K).

        The columns share the resamples, which takes a fraction of the time of K calls.
        """
        columns = numerators.shape[1]
        groups = len(numerators)
        if groups < FEWEST_UNITS:
            return [None] * columns
        sums = self._sums(np.column_stack([numerators, denominators]))
        return [
            self.ends(sums[:, k] / sums[:, columns + k], groups, bounds) for k in range(columns)
        ]

    def means(self, values: FloatArray) -> FloatArray:
        """The means (draws, K) of resamples of `values` (groups, K), computed in bounded memory."""
        return self._sums(values) / len(values)

    def ends(
        self, draws: FloatArray, units: int, bounds: Interval | None = None
    ) -> Interval | None:
        """The interval from the values `draws`, (draws,), of resamples of `units` groups."""
        if units < FEWEST_UNITS:
            return None
        if bounds is not None and np.ptp(draws) <= _EQUAL:
            value = min(max(float(draws[0]), bounds.low), bounds.high)
            return mean_interval(np.full(units, value), bounds, self.confidence)
        tail = 100 * _tail(units, self.confidence)
        low, high = np.percentile(draws, [tail, 100 - tail])
        return Interval(float(low), float(high))

    def _sums(self, values: FloatArray) -> FloatArray:
        groups, seed = len(values), identity_seed(self.seed, "bootstrap")
        cached = groups * self.draws <= _CACHED_BYTES
        counts = (_counts if cached else _count_chunks)(groups, self.draws, seed)
        return np.concatenate([chunk.astype(np.float64) @ values for chunk in counts])


@cache
def _tail(units: int, confidence: float) -> float:
    """The share of the draws on each side of an expanded percentile interval."""
    from scipy.special import ndtr, stdtrit  # slow to import

    return float(ndtr(math.sqrt(units / (units - 1)) * stdtrit(units - 1, (1 - confidence) / 2)))


@lru_cache(maxsize=2)
def _counts(groups: int, draws: int, seed: int) -> tuple[NDArray[np.uint8], ...]:
    return tuple(_count_chunks(groups, draws, seed))


def _count_chunks(groups: int, draws: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Chunks (draws, groups) of the count of each group in each draw; rows sum to `groups`.

    The draws do not depend on the size of a chunk. Counts are stored in a byte: a count is at most
    `groups`, and with more than 255 groups a count above 255 has a probability below 1e-400.
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, min(_AT_ONCE, _NUMBERS_AT_ONCE // groups))
    for first in range(0, draws, at_once):
        rows = min(at_once, draws - first)
        drawn = generator.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * groups)
        yield counts.reshape(rows, groups).astype(np.uint8)
