"""How sure a share is: score intervals of one share and of the difference of two paired shares."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple


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
