"""Scores over several seeds: their mean, its intervals, and what they say of a published number.

Two things make the score of a training uncertain: the seed (initialisation and order of the images)
and the held-out images. An interval over seeds knows of the first alone, one over images of the
second alone; `SeedScores` has both, and one that joins them.
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
from robustcli.metrics.intervals import Bootstrap, FloatArray, Interval
from robustcli.metrics.mask_scores import group_dice
from robustcli.metrics.rows import common_images

WIDEST = 0.02
"""Largest half-width of an interval over seeds that can confirm a published number."""
Reproduction = Literal["reproduced", "not reproduced", "cannot be said"]


@dataclass(frozen=True)
class SeedScores:
    """One score of `seeds` trainings on the same `units` (images, groups or batches).

    Args:
        seeds: How many trainings.
        units: Independent units that were scored; 0 where they are not known.
        mean: Over the seeds, in [0, 1].
        deviation: Standard deviation over the seeds (divided by N - 1); None for one seed.
        over_seeds: 95 % t interval of the mean, see `t_interval`.
        over_units: 95 % interval by resampling units, of the mean over seeds.
        joint: Both together, see `joined_interval`.
        single: Where 95 % of single trainings are expected on the same images, see `single_range`.
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
    """The numbers of several seeds.

    Args:
        scores: Of each seed, in [0, 1]; at least one.
        units: (U, S): the score of each unit with each seed, NaN where it has none; None where the
            seeds were not scored on the same units.
        bootstrap: How units are resampled.
    """
    values = np.asarray(scores, dtype=float)
    over_seeds = t_interval(values)
    of_units = np.empty(0) if units is None else _unit_means(units)
    over_units = _mean_interval(of_units, bootstrap)
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

    None for a single value, and where all are equal: values without any spread say nothing of how
    far others would lie.

    Source: Student, The probable error of a mean, Biometrika 6 (1908).
    """
    half = _t_half_width(values, confidence)
    if half is None:
        return None
    mean, half = float(values.mean()), half / math.sqrt(len(values))
    return Interval(mean - half, mean + half)


def single_range(values: FloatArray, confidence: float = 0.95) -> Interval | None:
    """Where one more value is expected with probability `confidence`: t prediction interval.

    The half-width is t(N - 1) s sqrt(1 + 1 / N). None as in `t_interval`.
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
    """The interval of a mean that is uncertain for two independent reasons.

    Each side is sqrt(a^2 + b^2) of the two intervals' sides. An interval over seeds also holds the
    part of the images' noise that differs between seeds, so the joint one is rather too wide than
    too narrow. Resampling seeds and images together would be too narrow with few seeds.

    Source: G. Y. Zou, A. Donner, Construction of confidence limits about effect measures: a general
    approach, Statistics in Medicine 27 (2008), 1693-1702, for sums.
    """
    if first is None or second is None:
        return None
    below = math.hypot(mean - first.low, mean - second.low)
    above = math.hypot(first.high - mean, second.high - mean)
    return Interval(mean - below, mean + above)


def _clipped(interval: Interval | None) -> Interval | None:
    """`interval` within [0, 1], where scores are."""
    return None if interval is None else Interval(max(0.0, interval.low), min(1.0, interval.high))


def _unit_means(units: FloatArray) -> FloatArray:
    """The mean over seeds of each unit that any seed has a score of."""
    known = units[~np.isnan(units).all(axis=1)]
    return np.asarray(np.nanmean(known, axis=1)) if len(known) else np.empty(0)


def _mean_interval(values: FloatArray, bootstrap: Bootstrap) -> Interval | None:
    """The percentile interval of the mean of `values`; None for fewer than two.

    Many images have few different values (a share of the seeds): then a resample is one draw of how
    often each value comes, which is the same distribution and takes no time.
    """
    distinct, counts = np.unique(values, return_counts=True)
    if len(values) < 2 or 2 * len(distinct) > len(values):
        return bootstrap.mean(values)
    generator = np.random.default_rng(identity_seed(bootstrap.seed, "bootstrap of counts"))
    drawn = generator.multinomial(len(values), counts / len(values), size=bootstrap.draws)
    tail = 50 * (1 - bootstrap.confidence)
    low, high = np.percentile(drawn @ distinct / len(values), [tail, 100 - tail])
    return Interval(float(low), float(high))


def unit_scores(task: TaskName, rows: Sequence[pd.DataFrame]) -> FloatArray | None:
    """The score of each unit (axis 0) with each seed (axis 1), of rows on the same images.

    Units are images of classifiers (1 if right, 0 if wrong), and the groups of segmenters (dice of
    their pooled pixels). None where the seeds have no image in common.

    Args:
        task: What the rows are of.
        rows: Of each seed, with the columns of `columns.ROW_SCHEMAS`; at least one.
    """
    frames = common_images(rows)
    if not len(frames[0]):
        return None
    if task == "cls":
        return np.column_stack([is_correct(frame).astype(float) for frame in frames])
    return np.column_stack([group_dice(frame) for frame in frames])


@dataclass(frozen=True)
class SeedDifference:
    """The mean of differences that belong to the same `seeds`, by a paired t test.

    `low`, `high` are its 95 % interval and `p` is two-sided; all None for one seed, and where all
    differences are equal.
    """

    seeds: int
    value: float
    low: float | None
    high: float | None
    p: float | None


def seed_difference(first: Sequence[float], second: Sequence[float]) -> SeedDifference:
    """`first` minus `second`, seed by seed.

    Raises:
        ValueError: They are not of equally many seeds, or of none.

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
    return SeedDifference(len(differences), mean, interval.low, interval.high, p)


def reproduction(published: float, over_seeds: Interval | None) -> Reproduction:
    """Whether a published number came out here, by the 95 % t interval of the mean over seeds.

    - `not reproduced`: the published number lies outside the interval.
    - `reproduced`: it lies inside, and the interval reaches at most WIDEST to either side.
    - `cannot be said`: there is no interval (one seed, or no spread), or it is wider than that: an
      interval wide enough holds any number.

    Whether the experiments can be compared at all (data, protocol, length) is not asked here.

    Args:
        published: In [0, 1].
        over_seeds: Of the same score here.
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
        units: Common images, or groups.
        first: Mean score over units and seeds, in [0, 1].
        second: The same of the other training.
        over_seeds: Welch's t interval of the difference, see `welch_interval`.
        over_units: By resampling units, of which each counts with its mean over seeds.
        joint: Both together, see `joined_interval`.
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
        """Which one is ahead: where the joint interval does not hold 0."""
        if self.joint is None:
            return "cannot be said"
        if self.joint.low <= 0 <= self.joint.high:
            return "no difference shown"
        return "first ahead" if self.difference > 0 else "second ahead"


def seeds_gap(first: FloatArray, second: FloatArray, bootstrap: Bootstrap) -> SeedsGap:
    """The difference of two trainings.

    Args:
        first: (U, S): the score of each unit with each seed.
        second: (U, T): of the same units, with seeds that need not be as many.
        bootstrap: How units are resampled, and the confidence of all intervals.
    """
    values, others = first.mean(axis=0), second.mean(axis=0)
    over_seeds = welch_interval(values, others, bootstrap.confidence)
    over_units = _mean_interval(first.mean(axis=1) - second.mean(axis=1), bootstrap)
    first_mean, second_mean = float(values.mean()), float(others.mean())
    joint = joined_interval(first_mean - second_mean, over_seeds, over_units)
    return SeedsGap(len(first), first_mean, second_mean, over_seeds, over_units, joint)


def welch_interval(
    first: FloatArray, second: FloatArray, confidence: float = 0.95
) -> Interval | None:
    """Welch's t interval of mean(first) - mean(second), for samples of unlike variance.

    None where one of them has a single value, or both are without spread.

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
