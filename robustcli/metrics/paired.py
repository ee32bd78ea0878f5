"""Two models on the same images: the difference, its interval and whether it may be chance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.core.seeds import identity_seed
from robustcli.metrics.class_scores import is_correct
from robustcli.metrics.intervals import Bootstrap, Interval, PairedCounts, paired_interval
from robustcli.metrics.mask_scores import group_dice
from robustcli.metrics.rows import common_images

# Whether paired differences are more than chance: the sign-flip (paired permutation) test.
#
# Where two ways of training do not differ, each difference could as well have had the other sign.
# No form of the differences' distribution is assumed.
#
# Source: R. A. Fisher, The Design of Experiments, 1935, section 21; E. J. G. Pitman, Significance
# tests which may be applied to samples from any populations, J. Roy. Stat. Soc. Suppl. 4 (1937).


EXACT_UP_TO = 16  # differences: 65,536 ways to choose the signs
SIGN_DRAWS = 20_000
_AT_ONCE = 2_000
_DIRECT_UP_TO = 10**7  # products: an exact sum of positive terms, before a Fourier transform
_SAME = 1e-9  # of the largest sum: the same sum in another order counts as equal


def sign_flip_p(differences: NDArray[np.float64], seed: int = 0) -> float:
    """The two-sided p-value, in (0, 1], of the sum of `differences` being 0 but for chance.

    Exact up to EXACT_UP_TO differences that are not 0, else from SIGN_DRAWS random signs, the
    observed ones among them.

    Args:
        differences: One per independent unit, at least one.
        seed: Of the random signs.
    """
    # SciPy's `permutation_test`, the oracle of the tests, draws other signs: p would change.
    values = differences[differences != 0]
    observed = abs(float(values.sum())) - _SAME * float(np.abs(values).sum())
    if len(values) <= EXACT_UP_TO:
        return float((np.abs(_all_sums(values)) >= observed).mean())
    generator = np.random.default_rng(identity_seed(seed, "sign-flip"))
    extreme = 0
    for _ in range(0, SIGN_DRAWS, _AT_ONCE):
        signs = 2.0 * generator.integers(2, size=(_AT_ONCE, len(values))) - 1
        extreme += int((np.abs(signs @ values) >= observed).sum())
    return (1 + extreme) / (1 + SIGN_DRAWS)


def exact_sign_flip_p(differences: NDArray[np.int64]) -> float:
    """The exact p-value of the same test for whole numbers, however many: McNemar's for -1, 0, 1.

    The distribution of the sum is the convolution of one binomial per size of difference.

    Args:
        differences: One per independent unit, in small whole numbers.
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    from scipy.signal import fftconvolve
    from scipy.stats import binom

    positive = np.ones(1)  # the distribution of the sum of the positive differences
    for size, count in zip(sizes, counts, strict=True):
        stretched = np.zeros(int(size) * int(count) + 1)
        stretched[:: int(size)] = binom.pmf(np.arange(count + 1), count, 0.5)
        small = len(positive) * len(stretched) <= _DIRECT_UP_TO
        positive = (np.convolve if small else fftconvolve)(positive, stretched)
    total = int((sizes * counts).sum())
    sums = 2 * np.arange(total + 1) - total
    extreme = np.abs(sums) >= abs(int(differences.sum()))
    return float(min(1.0, max(positive[extreme].sum(), np.finfo(float).tiny)))


def mean_interval(differences: NDArray[np.float64], confidence: float = 0.95) -> Interval:
    """The adjusted Wald interval of the mean of paired differences in [-1, 1].

    Two made-up units, of 1 and of -1, join the others; so it has a width where all are alike.

    Args:
        differences: One per independent unit.
        confidence: Coverage, in (0, 1).

    Source: D. G. Bonett, R. M. Price, Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data, J. Educ. Behav. Stat. 37 (2012), which it is for
    differences of -1, 0 and 1.
    """
    n = len(differences) + 2
    mean = float(differences.sum()) / n
    variance = (float((differences**2).sum()) + 2) / n - mean**2
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance / n)
    return Interval(max(-1.0, mean - half), min(1.0, mean + half))


def smallest_p(units: int) -> float:
    """The smallest p-value that `units` differences can give at all."""
    return 2.0 ** (1 - units) if units <= EXACT_UP_TO else 1 / (1 + SIGN_DRAWS)


def _all_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums under every choice of signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


# Two classifiers on the same images: how their top-1 differs, and whether by more than chance.
#
# Source of the test: Q. McNemar, Note on the sampling error of the difference between correlated
# proportions or percentages, Psychometrika 12 (1947), in its exact form: of the images that only
# one of both has right, each is as likely to be the one's or the other's.


@dataclass(frozen=True)
class ClassDifference:
    """A classifier's top-1 minus a reference's.

    Args:
        n: Images that both have.
        value: The difference of the shares that are right.
        low: Lower end of its paired 95 % interval.
        high: Its upper end.
        p: Of McNemar's exact test, two-sided; 1 where both have the same images right.
    """

    n: int
    value: float
    low: float
    high: float
    p: float

    @property
    def groups(self) -> int:
        """Independent units: every image is one."""
        return self.n

    @property
    def smallest_p(self) -> float:
        """The smallest p that so many images can give."""
        return 2.0 ** (1 - self.n)


def class_difference(reference: pd.DataFrame, rows: pd.DataFrame) -> ClassDifference | None:
    """What `rows` gains over `reference`, over the images that both have; None without any.

    Args:
        reference: Rows of one classifier (columns: `store.PREDICTION_SCHEMA`).
        rows: Rows of the other one.
    """
    both = common_images([reference, rows])
    return hit_difference(*map(is_correct, both)) if len(both[0]) else None


def hit_difference(before: NDArray[np.bool_], now: NDArray[np.bool_]) -> ClassDifference:
    """What `now` gains over `before`; each says which of the same images (at least one) are right.

    The interval is Newcombe's.
    """
    won, lost = int((now & ~before).sum()), int((before & ~now).sum())
    counts = PairedCounts(int((now & before).sum()), won, lost, int((~now & ~before).sum()))
    low, high = paired_interval(counts)
    return ClassDifference(len(now), (won - lost) / len(now), low, high, mcnemar_p(won, lost))


def mcnemar_p(won: int, lost: int) -> float:
    """The two-sided exact p-value of `won` against `lost` single hits being chance alone."""
    if won + lost == 0:
        return 1.0
    from scipy.stats import binomtest  # takes most of a second to import

    return float(binomtest(won, won + lost, 0.5).pvalue)


# Two segmenters on the same images: how much their dice differs, and whether by more than chance.
#
# The value, its interval and its p-value are all of one statistic: each group's dice (the pixels of
# its images pooled) in one segmenter minus that in the other, averaged over the groups. What is
# drawn and what is flipped is a group, such as a patient, since its images resemble each other.


@dataclass(frozen=True)
class MaskDifference:
    """A segmenter's dice minus a reference's.

    Args:
        n: Images that both have.
        groups: Groups of these images.
        dice: Difference of the dice pooled within groups and averaged over them.
        low: Lower end of its paired 95 % bootstrap interval over groups; None with one group.
        high: Its upper end.
        p: Of the sign-flip test of the groups' differences, two-sided. None with one group.
        smallest_p: The smallest p that so many groups can give.
    """

    n: int
    groups: int
    dice: float
    low: float | None
    high: float | None
    p: float | None
    smallest_p: float

    @property
    def value(self) -> float:
        """The difference, whatever it is of."""
        return self.dice


def mask_difference(
    reference: pd.DataFrame, rows: pd.DataFrame, bootstrap: Bootstrap
) -> MaskDifference | None:
    """What `rows` gains over `reference`, over the images that both have; None without any.

    Args:
        reference: Rows of one segmenter (columns: `store.MASK_SCHEMA`).
        rows: Rows of the other one.
        bootstrap: The run's resamples; its seed also draws the signs.
    """
    both = common_images([reference, rows])
    if both[0].empty:
        return None
    before, after = map(group_dice, both)
    return dice_difference(after - before, len(both[0]), bootstrap)


def dice_difference(
    gained: NDArray[np.float64], images: int, bootstrap: Bootstrap
) -> MaskDifference:
    """The mean of `gained` with its interval and test.

    Args:
        gained: The difference of dice of each group, at least one.
        images: Images of these groups.
        bootstrap: See `mask_difference`.
    """
    interval, groups = bootstrap.mean(gained), len(gained)
    return MaskDifference(
        images,
        groups,
        float(gained.mean()),
        interval.low if interval else None,
        interval.high if interval else None,
        sign_flip_p(gained, bootstrap.seed) if groups > 1 else None,
        smallest_p(groups),
    )
