"""Two models on the same images: the difference, its interval and whether it may be chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.core.seeds import identity_seed
from robustcli.metrics.intervals import Bootstrap, PairedCounts, paired_interval
from robustcli.metrics.mask_scores import paired_dice

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
    both = reference.merge(rows, on="image_id", suffixes=("", "_other"), validate="1:1")
    if both.empty:
        return None
    before = (both["prediction"] == both["target"]).to_numpy()
    now = (both["prediction_other"] == both["target_other"]).to_numpy()
    won, lost = int((now & ~before).sum()), int((before & ~now).sum())
    counts = PairedCounts(int((now & before).sum()), won, lost, int((~now & ~before).sum()))
    low, high = paired_interval(counts)
    return ClassDifference(len(both), (won - lost) / len(both), low, high, mcnemar_p(won, lost))


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
    before, after = paired_dice(reference, rows)
    gained, groups = after - before, len(before)
    if not groups:
        return None
    interval = bootstrap.mean(gained)
    return MaskDifference(
        len(set(reference["image_id"]) & set(rows["image_id"])),
        groups,
        float(gained.mean()),
        interval.low if interval else None,
        interval.high if interval else None,
        sign_flip_p(gained, bootstrap.seed) if groups > 1 else None,
        smallest_p(groups),
    )
