"""Intervals by resampling whole groups: what is drawn is a patient, not one of a patient's images.

Images of one group resemble each other, so an interval over images would be too narrow.
Source: B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap, 1993, sections 13.3 and 8.3
(percentile interval; resampling the independent units).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from robustcli.core.seeds import identity_seed
from robustcli.evaluation.intervals import Interval

DRAWS = 10_000
_AT_ONCE = 1_000  # draws held as 64-bit numbers: with thousands of groups, all would fill memory


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

    def _ratios(
        self, numerators: NDArray[np.float64], denominators: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        counts = _counts(len(numerators), self.draws, identity_seed(self.seed, "bootstrap"))
        both = np.column_stack([numerators, denominators])
        parts = range(0, self.draws, _AT_ONCE)
        sums = np.concatenate([counts[p : p + _AT_ONCE].astype(np.float64) @ both for p in parts])
        ratios: NDArray[np.float64] = sums[:, 0] / sums[:, 1]
        return ratios


@lru_cache(maxsize=2)
def _counts(groups: int, draws: int, seed: int) -> NDArray[np.uint8]:
    """How often each draw takes each group: (draws, groups), every row summing to `groups`.

    A byte suffices: a count is at most `groups`, and with more than 255 groups one above 255 has a
    probability below 1e-400.
    """
    generator = np.random.default_rng(seed)
    counts = np.empty((draws, groups), np.uint8)
    for first in range(0, draws, _AT_ONCE):
        rows = min(_AT_ONCE, draws - first)
        taken = generator.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        found = np.bincount(taken.ravel(), minlength=rows * groups)
        counts[first : first + rows] = found.reshape(rows, groups)
    return counts
