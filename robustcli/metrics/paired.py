"""The difference of two models on the same images, with its interval and p-value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.core.seeds import identity_seed
from robustcli.metrics.class_scores import is_correct
from robustcli.metrics.columns import common_images
from robustcli.metrics.intervals import (
    DIFFERENCES_OF_SHARES,
    FEWEST_UNITS,
    Bootstrap,
    FloatArray,
    PairedCounts,
    both_ends,
    paired_interval,
)
from robustcli.metrics.mask_scores import group_dice

EXACT_UP_TO = 16  # differences: 65,536 combinations of signs
SIGN_DRAWS = 20_000
_AT_ONCE = 2_000
_DIRECT_UP_TO = 10**7  # products: largest direct (exact) convolution; else by FFT
_SAME = 1e-9  # of the largest sum: tolerance for sums of the same terms in another order


def sign_flip_p(differences: FloatArray, seed: int = 0) -> float:
    """The two-sided p-value, in (0, 1], of the sign-flip (paired permutation) test.

    Under the null hypothesis, both signs of each difference (one per independent unit) are equally
    likely; no distribution is assumed. The p-value is exact up to EXACT_UP_TO non-zero differences,
    else estimated from SIGN_DRAWS random choices of signs, including the observed one, drawn with
    `seed`.

    Source: R. A. Fisher, The Design of Experiments, 1935, section 21; E. J. G. Pitman, Significance
    tests which may be applied to samples from any populations, J. Roy. Stat. Soc. Suppl. 4 (1937).
    """
    # SciPy's `permutation_test`, the reference in the tests, draws other signs: p would change.
    values = differences[differences != 0]
    observed = abs(float(values.sum())) - _SAME * float(np.abs(values).sum())
    if len(values) <= EXACT_UP_TO:
        sums = np.zeros(1)  # for all combinations of signs
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= observed).mean())
    generator = np.random.default_rng(identity_seed(seed, "sign-flip"))
    extreme = 0
    for _ in range(0, SIGN_DRAWS, _AT_ONCE):
        signs = 2.0 * generator.integers(2, size=(_AT_ONCE, len(values))) - 1
        extreme += int((np.abs(signs @ values) >= observed).sum())
    return (1 + extreme) / (1 + SIGN_DRAWS)


def exact_sign_flip_p(differences: NDArray[np.int64]) -> float:
    """The exact p-value of `sign_flip_p` for small integers; McNemar's test for -1, 0 and 1.

    The distribution of the sum is a convolution of one binomial distribution per absolute
    difference.
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


def smallest_p(units: int) -> float:
    """The smallest p-value that the sign-flip test can give for `units` differences."""
    return smallest_exact_p(units) if units <= EXACT_UP_TO else 1 / (1 + SIGN_DRAWS)


def smallest_exact_p(units: int) -> float:
    """The smallest p-value that an exact test of `units` signs, such as McNemar's, can give."""
    return 2.0 ** (1 - units)


@dataclass(frozen=True)
class PairedDifference:
    """The score of a model minus that of a reference over `n` images in `groups` independent units.

    The score of a classifier is its top-1, and every image is a unit. That of a segmenter is the
    dice of each group (with pooled pixels), averaged over groups; groups are the units, because
    images of a group are correlated. The paired 95 % interval and `p` (two-sided) belong to the
    same statistic; for segmenters, both are None for fewer than `FEWEST_UNITS` groups. `smallest_p`
    is the smallest possible p for this number of units.
    """

    n: int
    groups: int
    value: float
    low: float | None
    high: float | None
    p: float | None
    smallest_p: float


def class_difference(reference: pd.DataFrame, rows: pd.DataFrame) -> PairedDifference | None:
    """The gain of `rows` over `reference` (columns: `PREDICTION_SCHEMA`) on their common images.

    None without common images.
    """
    common_rows = common_images([reference, rows])
    return hit_difference(*map(is_correct, common_rows)) if len(common_rows[0]) else None


def hit_difference(before: NDArray[np.bool_], now: NDArray[np.bool_]) -> PairedDifference:
    """The gain of `now` over `before`, the correctness of the same images (at least one).

    With Newcombe's paired interval and the p-value of McNemar's exact test.
    """
    won, lost, n = int((now & ~before).sum()), int((before & ~now).sum()), len(now)
    counts = PairedCounts(int((now & before).sum()), won, lost, int((~now & ~before).sum()))
    value, p = (won - lost) / n, mcnemar_p(won, lost)
    return PairedDifference(n, n, value, *paired_interval(counts), p, smallest_exact_p(n))


def mcnemar_p(won: int, lost: int) -> float:
    """The two-sided p-value of McNemar's exact test.

    Args:
        won: Images that only the first classifier predicts correctly.
        lost: Images that only the second classifier predicts correctly.

    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions
    or percentages, Psychometrika 12 (1947).
    """
    from scipy.special import betainc  # scipy.stats takes four times as long to import

    # Twice the probability of at most `smaller` heads in `smaller + larger` tosses of a fair coin:
    # the distribution is symmetric.
    smaller, larger = sorted((won, lost))
    return min(1.0, 2 * float(betainc(larger, smaller + 1, 0.5))) if larger else 1.0


def mask_difference(
    reference: pd.DataFrame, rows: pd.DataFrame, bootstrap: Bootstrap
) -> PairedDifference | None:
    """The gain of `rows` over `reference` (columns: `MASK_SCHEMA`) on their common images.

    None without common images. The seed of `bootstrap` also draws the signs.
    """
    common_rows = common_images([reference, rows])
    if common_rows[0].empty:
        return None
    before, after = map(group_dice, common_rows)
    return dice_difference(after - before, len(common_rows[0]), bootstrap)


def dice_difference(gained: FloatArray, images: int, bootstrap: Bootstrap) -> PairedDifference:
    """The mean of `gained`, the dice differences of the groups (at least one).

    With a paired bootstrap interval and the p-value of the sign-flip test.
    """
    groups = len(gained)
    return PairedDifference(
        images,
        groups,
        float(gained.mean()),
        *both_ends(bootstrap.mean(gained, DIFFERENCES_OF_SHARES)),
        sign_flip_p(gained, bootstrap.seed) if groups >= FEWEST_UNITS else None,
        smallest_p(groups),
    )
