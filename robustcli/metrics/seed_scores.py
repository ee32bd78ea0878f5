"""Scores over several seeds: mean, intervals, and comparison with a published number.

The score of a training depends on the seed (initialisation and order of the images) and on the
held-out images. An interval over seeds only covers the first source of uncertainty, an interval
over images only the second; `SeedScores` contains both, and a combined interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from robustcli.core.names import TaskName
from robustcli.core.seeds import identity_seed
from robustcli.metrics.class_scores import is_correct
from robustcli.metrics.columns import common_images
from robustcli.metrics.intervals import (
    DIFFERENCES_OF_SHARES,
    FEWEST_UNITS,
    SHARES,
    Bootstrap,
    FloatArray,
    Interval,
)
from robustcli.metrics.mask_scores import group_dice

WIDEST = 0.02
"""Largest half-width of an interval over seeds that can confirm a published number."""
Reproduction = Literal["reproduced", "not reproduced", "cannot be said"]


@dataclass(frozen=True)
class SeedScores:
    """One score of `seeds` trainings on the same `units` (images, groups or batches).

    Args:
        seeds: Number of trainings.
        units: Number of independent units that were scored; 0 if unknown.
        mean: Mean over the seeds, in [0, 1].
        deviation: Standard deviation over the seeds (divided by N - 1); None for one seed.
        over_seeds: 95 % t interval of the mean, see `t_interval`.
        over_units: 95 % interval of the mean over seeds, by resampling units.
        joint: Combination of both intervals, see `joined_interval`.
        single: Range in which 95 % of single trainings are expected on the same images, see
            `single_range`.
    """

    seeds: int
    units: int
    mean: float
    deviation: float | None
    over_seeds: Interval | None
    over_units: Interval | None
    joint: Interval | None
    single: Interval | None


def seed_scores(
    scores: Sequence[float], units: FloatArray | None, bootstrap: Bootstrap
) -> SeedScores:
    """The mean score of several seeds, with its intervals.

    Args:
        scores: Score of each seed, in [0, 1]; at least one.
        units: (U, S): the score of each unit with each seed, NaN without one; None if the seeds
            were not scored on the same units.
        bootstrap: Settings for resampling units.
    """
    values = np.asarray(scores, dtype=float)
    over_seeds = t_interval(values)
    of_units = np.empty(0) if units is None else _unit_means(units)
    over_units = _mean_interval(of_units, bootstrap, SHARES)
    mean = float(values.mean())
    return SeedScores(
        len(values),
        len(of_units),
        mean,
        float(values.std(ddof=1)) if len(values) > 1 else None,
        _clipped(over_seeds),
        over_units,
        _clipped(joined_interval(mean, over_seeds, over_units)),
        _clipped(single_range(values)),
    )


def t_interval(values: FloatArray, confidence: float = 0.95) -> Interval | None:
    """Student's t interval of the mean of `values`, with N - 1 degrees of freedom.

    None for a single value, and if all values are equal, because their spread cannot be estimated.

    Source: Student, The probable error of a mean, Biometrika 6 (1908).
    """
    half = _t_half_width(values, confidence)
    if half is None:
        return None
    mean, half = float(values.mean()), half / math.sqrt(len(values))
    return Interval(mean - half, mean + half)


def single_range(values: FloatArray, confidence: float = 0.95) -> Interval | None:
    """The t prediction interval: contains one more value with probability `confidence`.

    The half-width is t(N - 1) s sqrt(1 + 1 / N). None in the same cases as `t_interval`.
    """
    half = _t_half_width(values, confidence)
    if half is None:
        return None
    mean, half = float(values.mean()), half * math.sqrt(1 + 1 / len(values))
    return Interval(mean - half, mean + half)


def _t_half_width(values: FloatArray, confidence: float) -> float | None:
    """t(N - 1) times the standard deviation of `values`."""
    if len(values) < 2:
        return None
    deviation = float(values.std(ddof=1))
    if deviation <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return None
    from scipy.special import stdtrit  # scipy.stats takes four times as long to import

    return float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * deviation


def joined_interval(
    mean: float, first: Interval | None, second: Interval | None
) -> Interval | None:
    """Combines the intervals of a mean with two independent sources of uncertainty.

    The distance of each end from the mean is sqrt(a^2 + b^2) for the distances a and b of the two
    intervals. An interval over seeds already includes the noise of the images that differs between
    seeds, so the joint interval tends to be too wide. Resampling seeds and images together would
    give too narrow intervals for few seeds.

    Source: G. Y. Zou, A. Donner, Construction of confidence limits about effect measures: a general
    approach, Statistics in Medicine 27 (2008), 1693-1702, for sums.
    """
    if first is None or second is None:
        return None
    below = math.hypot(mean - first.low, mean - second.low)
    above = math.hypot(first.high - mean, second.high - mean)
    return Interval(mean - below, mean + above)


def _clipped(interval: Interval | None) -> Interval | None:
    """`interval` clipped to [0, 1], the range of scores."""
    return None if interval is None else Interval(max(0.0, interval.low), min(1.0, interval.high))


def _unit_means(units: FloatArray) -> FloatArray:
    """The mean over seeds of each unit with at least one score."""
    known = units[~np.isnan(units).all(axis=1)]
    return np.asarray(np.nanmean(known, axis=1)) if len(known) else np.empty(0)


def _mean_interval(values: FloatArray, bootstrap: Bootstrap, bounds: Interval) -> Interval | None:
    """The bootstrap interval of the mean of `values`; None for fewer than `FEWEST_UNITS`.

    If there are few distinct values (for images, shares of the seeds), a resample is one
    multinomial draw of the count of each value, which has the same distribution and is fast.
    """
    distinct, counts = np.unique(values, return_counts=True)
    if len(values) < FEWEST_UNITS or 2 * len(distinct) > len(values):
        return bootstrap.mean(values, bounds)
    generator = np.random.default_rng(identity_seed(bootstrap.seed, "bootstrap of counts"))
    drawn = generator.multinomial(len(values), counts / len(values), size=bootstrap.draws)
    return bootstrap.ends(drawn @ distinct / len(values), len(values), bounds)


def unit_scores(task: TaskName, rows: Sequence[pd.DataFrame]) -> FloatArray | None:
    """The score of each unit (axis 0) with each seed (axis 1), over the common images.

    Units are images for classifiers (1 if correct, else 0) and groups for segmenters (dice of their
    pooled pixels). None if the seeds have no image in common.

    Args:
        task: The task of the models.
        rows: Rows of each seed, with the columns of `columns.ROW_SCHEMAS`; at least one seed.
    """
    frames = common_images(rows)
    if not len(frames[0]):
        return None
    if task == "cls":
        return np.column_stack([is_correct(frame).astype(float) for frame in frames])
    return np.column_stack([group_dice(frame) for frame in frames])


@dataclass(frozen=True)
class SeedDifference:
    """The mean of differences paired by seed, with a paired t test over `seeds` seeds.

    `low` and `high` are its 95 % interval in [-1, 1] and `p` is two-sided; all are None for one
    seed, and if all differences are equal.
    """

    seeds: int
    value: float
    low: float | None
    high: float | None
    p: float | None


def seed_difference(first: Sequence[float], second: Sequence[float]) -> SeedDifference:
    """The difference `first` minus `second`, paired by seed.

    Raises:
        ValueError: The lists differ in length, or are empty.

    Source: Student (1908), as `t_interval`.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"Expected scores of the same seeds, got {len(first)} and {len(second)}.")
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    mean, interval = float(differences.mean()), t_interval(differences)
    if interval is None:
        return SeedDifference(len(differences), mean, None, None, None)
    from scipy.special import stdtr

    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    p = 2 * float(stdtr(len(differences) - 1, -abs(mean) / error))
    low, high = max(-1.0, interval.low), min(1.0, interval.high)
    return SeedDifference(len(differences), mean, low, high, p)


def reproduction(published: float, over_seeds: Interval | None) -> Reproduction:
    """Whether a published number is reproduced, by the 95 % t interval of the mean over seeds.

    - `not reproduced`: the published number is outside the interval.
    - `reproduced`: it is inside the interval, which has a half-width of at most WIDEST.
    - `cannot be said`: no interval exists (one seed, or no spread), or the half-width is larger: a
      wide interval would contain almost any number.

    The function does not check whether the experiments (data, protocol, length) are comparable.

    Args:
        published: The published number, in [0, 1].
        over_seeds: The interval over seeds of the same score.
    """
    if over_seeds is None:
        return "cannot be said"
    low, high = over_seeds
    if not low <= published <= high:
        return "not reproduced"
    return "reproduced" if (high - low) / 2 <= WIDEST else "cannot be said"


Lead = Literal["first ahead", "second ahead", "no difference shown", "cannot be said"]


@dataclass(frozen=True)
class SeedsGap:
    """The score of one training minus that of another, each over its seeds, on the same units.

    Args:
        units: Number of common images or groups.
        first: Mean score of the first training over units and seeds, in [0, 1].
        second: Mean score of the second training.
        over_seeds: Welch's t interval of the difference, see `welch_interval`.
        over_units: Interval by resampling units; the score of a unit is its mean over seeds.
        joint: Combination of both intervals, see `joined_interval`.
    """

    units: int
    first: float
    second: float
    over_seeds: Interval | None
    over_units: Interval | None
    joint: Interval | None

    @property
    def difference(self) -> float:
        """`first` minus `second`."""
        return self.first - self.second

    @property
    def lead(self) -> Lead:
        """Which training is ahead, if the joint interval does not contain 0."""
        if self.joint is None:
            return "cannot be said"
        if self.joint.low <= 0 <= self.joint.high:
            return "no difference shown"
        return "first ahead" if self.difference > 0 else "second ahead"


def seeds_gap(first: FloatArray, second: FloatArray, bootstrap: Bootstrap) -> SeedsGap:
    """The difference of two trainings.

    Args:
        first: (U, S): the score of each unit with each seed.
        second: (U, T): the scores of the same units; the number of seeds can differ.
        bootstrap: Settings for resampling units, and the confidence level of all intervals.
    """
    first_values, second_values = first.mean(axis=0), second.mean(axis=0)
    over_seeds = welch_interval(first_values, second_values, bootstrap.confidence)
    gaps = first.mean(axis=1) - second.mean(axis=1)
    over_units = _mean_interval(gaps, bootstrap, DIFFERENCES_OF_SHARES)
    first_mean, second_mean = float(first_values.mean()), float(second_values.mean())
    joint = joined_interval(first_mean - second_mean, over_seeds, over_units)
    return SeedsGap(len(first), first_mean, second_mean, over_seeds, over_units, joint)


def welch_interval(
    first: FloatArray, second: FloatArray, confidence: float = 0.95
) -> Interval | None:
    """Welch's t interval of mean(first) - mean(second), for samples of unequal variance.

    None if one of them has a single value, or both have zero variance.

    Source: B. L. Welch, The generalization of `Student's' problem when several different population
    variances are involved, Biometrika 34 (1947).
    """
    if min(len(first), len(second)) < 2:
        return None
    if t_interval(first) is None and t_interval(second) is None:
        return None
    from scipy.special import stdtrit

    parts = [float(values.var(ddof=1)) / len(values) for values in (first, second)]
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(sum(parts))
    difference = float(first.mean() - second.mean())
    return Interval(difference - half, difference + half)
