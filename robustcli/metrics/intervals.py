"""Confidence intervals: of shares, of paired differences, and by resampling groups."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustcli.core.seeds import identity_seed

# How sure a share is: score intervals of one share and of the difference of two paired shares.


class Interval(NamedTuple):
    """The ends of a confidence interval, in the unit of what it surrounds."""

    low: float
    high: float


class PairedCounts(NamedTuple):
    """How many images two measurements got right: both, first only, second only, neither."""

    both: int
    first_only: int
    second_only: int
    neither: int


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> Interval:
    """The Wilson score interval of the share `correct / n`, within [0, 1].

    Args:
        correct: Successes, 0 to `n`.
        n: Trials, at least 1.
        confidence: Coverage, in (0, 1).

    Raises:
        ValueError: The counts are not those of a share.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    JASA 22 (1927), 209-212.
    """
    # SciPy's `proportion_ci` is the test's oracle: every report would wait most of a second for it.
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"`correct` must be 0 to `n` and `n` at least 1, not {correct} of {n}.")
    z = _z(confidence)
    share, spread = correct / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return Interval(
        0.0 if correct == 0 else max(0.0, centre - half),
        1.0 if correct == n else min(1.0, centre + half),
    )


def paired_interval(counts: PairedCounts, confidence: float = 0.95) -> Interval:
    """The interval of (first share - second share) of one set of images, within [-1, 1].

    It joins the Wilson intervals of the two shares and allows for their correlation, so it keeps
    its coverage near 0 and 1, where the usual Wald interval does not.

    Args:
        counts: The 2 x 2 table, at least one image in it.
        confidence: Coverage, in (0, 1).

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


def _joined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))


def _correlation(counts: PairedCounts) -> float:
    """Newcombe's phi: a positive correlation is moved towards 0 by half an image pair."""
    both, first_only, second_only, neither = counts
    first, second, n = both + first_only, both + second_only, sum(counts)
    margins = first * (n - first) * second * (n - second)
    if margins == 0:
        return 0.0
    product = both * neither - first_only * second_only
    return (max(product - n / 2, 0.0) if product > 0 else product) / math.sqrt(margins)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


# Intervals by resampling whole groups: what is drawn is a patient, not one of a patient's images.
#
# Images of one group resemble each other, so an interval over images would be too narrow.
# Source: B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap, 1993, sections 13.3 and 8.3
# (percentile interval; resampling the independent units).


DRAWS = 10_000
_AT_ONCE = 1_000  # draws held as 64-bit numbers: with thousands of groups, all would fill memory
_NUMBERS_AT_ONCE = 2**23
_CACHED_BYTES = 2**27


@dataclass(frozen=True)
class Bootstrap:
    """The resamples of one run.

    They depend on the run's seed and the number of groups alone: the same rows give the same
    interval, and all models and transforms of a run are judged on the same resamples.

    Args:
        seed: The run's seed.
        draws: Resamples.
        confidence: Coverage of the intervals, in (0, 1).
    """

    seed: int
    draws: int = DRAWS
    confidence: float = 0.95

    def mean(self, values: NDArray[np.float64]) -> Interval | None:
        """The percentile interval of the mean of `values` (one per group); None for one group."""
        return self.ratio(values, np.ones(len(values)))

    def ratio(
        self, numerators: NDArray[np.float64], denominators: NDArray[np.float64]
    ) -> Interval | None:
        """The percentile interval of sum(numerators) / sum(denominators) over groups.

        Args:
            numerators: One per group.
            denominators: One per group, above 0.
        """
        if len(numerators) < 2:
            return None
        tail = 50 * (1 - self.confidence)
        low, high = np.percentile(self._ratios(numerators, denominators), [tail, 100 - tail])
        return Interval(float(low), float(high))

    def means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The means of the resamples: (draws, K) of `values` (groups, K), in bounded memory."""
        return self._sums(values) / len(values)

    def _ratios(
        self, numerators: NDArray[np.float64], denominators: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        sums = self._sums(np.column_stack([numerators, denominators]))
        ratios: NDArray[np.float64] = sums[:, 0] / sums[:, 1]
        return ratios

    def _sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        groups, seed = len(values), identity_seed(self.seed, "bootstrap")
        cached = groups * self.draws <= _CACHED_BYTES
        counts = (_counts if cached else _count_chunks)(groups, self.draws, seed)
        return np.concatenate([chunk.astype(np.float64) @ values for chunk in counts])


@lru_cache(maxsize=2)
def _counts(groups: int, draws: int, seed: int) -> tuple[NDArray[np.uint8], ...]:
    return tuple(_count_chunks(groups, draws, seed))


def _count_chunks(groups: int, draws: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """How often each draw takes each group: chunks of (draws, groups), rows summing to `groups`.

    The draws do not depend on the size of a chunk. A byte suffices: a count is at most `groups`,
    and with more than 255 groups one above 255 has a probability below 1e-400.
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, min(_AT_ONCE, _NUMBERS_AT_ONCE // groups))
    for first in range(0, draws, at_once):
        rows = min(at_once, draws - first)
        taken = generator.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        counts = np.bincount(taken.ravel(), minlength=rows * groups)
        yield counts.reshape(rows, groups).astype(np.uint8)
