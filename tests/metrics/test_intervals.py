"""Intervals of shares, paired differences and resampled groups, against SciPy."""

from __future__ import annotations

import math
import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq
from scipy.stats import binomtest, multinomial

from robustcli.core.seeds import identity_seed
from robustcli.metrics import intervals
from robustcli.metrics.intervals import (
    DIFFERENCES_OF_SHARES,
    DRAWS,
    SHARES,
    Bootstrap,
    Interval,
    PairedCounts,
    _counts,
    mean_interval,
    paired_interval,
    wilson_interval,
)


def test_the_interval_is_that_of_scipys_percentile_bootstrap():
    values = np.random.default_rng(3).beta(8, 2, 60)
    low, high = Bootstrap(0).mean(values)
    rng = np.random.default_rng(0)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=DRAWS, method="percentile", rng=rng
    ).confidence_interval
    assert low == pytest.approx(theirs.low, abs=2e-3)
    assert high == pytest.approx(theirs.high, abs=2e-3)


def test_the_means_of_resamples_are_those_of_their_values():
    values = np.random.default_rng(4).random((40, 2))
    means = Bootstrap(0, draws=2000).means(values)
    assert means.shape == (2000, 2)
    assert means.mean(0) == pytest.approx(values.mean(0), abs=5e-3)
    assert means.std(0) == pytest.approx(values.std(0) / math.sqrt(40), rel=0.1)


def test_groups_weigh_as_many_images_as_they_have():
    """The share of images, resampling groups: one large group decides, or is not drawn at all."""
    numerators, denominators = np.array([90.0, 1, 1]), np.array([90.0, 10, 10])
    low, high = Bootstrap(0).ratio(numerators, denominators)
    assert low == pytest.approx(0.1), "the large group is absent from 8 of 27 draws"
    assert high == pytest.approx(1.0), "and alone in 1 of 27"


def test_the_same_seed_gives_the_same_interval_and_another_another():
    values = np.random.default_rng(5).random(30)
    assert Bootstrap(1).mean(values) == Bootstrap(1).mean(values)
    assert Bootstrap(1).mean(values) != Bootstrap(2).mean(values)


def test_all_columns_are_judged_on_the_same_draws():
    """So a constant difference has an interval without width, whatever the values."""
    before = np.random.default_rng(7).random(40)
    low, high = Bootstrap(0).mean(before - (before - 0.25))
    assert (low, high) == (pytest.approx(0.25), pytest.approx(0.25))
    first, second = Bootstrap(0).mean(before), Bootstrap(0).mean(before - 0.25)
    assert [a - b for a, b in zip(first, second, strict=True)] == pytest.approx([0.25, 0.25])


@pytest.mark.parametrize("groups", [3, 5, 20, 500])
def test_percentiles_are_expanded_by_hesterbergs_rule(groups: int):
    # T. C. Hesterberg, section 4.3: the normal share beyond sqrt(n / (n - 1)) t(n - 1).
    beyond = np.sqrt(groups / (groups - 1)) * stats.t.ppf(0.025, groups - 1)
    interval = Bootstrap(0).ends(np.linspace(0, 1, 100_001), groups)
    assert interval == pytest.approx((stats.norm.cdf(beyond), stats.norm.sf(beyond)))


@pytest.mark.parametrize(
    ("value", "bounds"), [(1.0, SHARES), (0.9, SHARES), (0.0, DIFFERENCES_OF_SHARES)]
)
def test_equal_scores_of_the_groups_are_no_certainty(value, bounds):
    values, ones = np.full(8, value), np.ones(8)
    interval = Bootstrap(0).mean(values, bounds)
    assert interval == pytest.approx(mean_interval(values, bounds))
    assert interval.low < value <= interval.high
    assert Bootstrap(0).ratio(3 * values, 3 * ones, bounds) == pytest.approx(interval)
    wide = Bootstrap(0, confidence=0.99).mean(values, bounds)
    assert wide.low < interval.low
    assert Bootstrap(0).mean(values) == pytest.approx((value, value)), "no bounds are known"
    values[0] -= 0.001
    assert Bootstrap(0).mean(values, bounds) == Bootstrap(0).mean(values)


def test_one_or_two_groups_have_no_interval():
    assert Bootstrap(0).mean(np.array([0.5])) is None
    assert Bootstrap(0).mean(np.array([0.5, 0.6])) is None
    assert Bootstrap(0).mean(np.array([0.5, 0.6, 0.7])) is not None


@pytest.mark.parametrize("groups", [5, 10])
def test_intervals_keep_their_coverage_with_few_groups(groups: int):
    # Plain percentiles of 5 and 10 groups cover the mean in about 84 and 90 of 100 trials.
    values = np.random.default_rng(0).normal(size=(groups, 1000))
    ends = Bootstrap(0, draws=2_000).ratios(values, np.ones_like(values))
    covered = np.mean([end.low <= 0 <= end.high for end in ends])
    assert 0.90 < covered < 0.97


def test_the_interval_of_a_mean_is_bonett_and_prices_for_single_severities():
    # Bonett & Price (2012): (b - c) / (n + 2) with one image added to both discordant counts.
    b, c, n = 9, 3, 40
    p12, p21 = (b + 1) / (n + 2), (c + 1) / (n + 2)
    half = stats.norm.ppf(0.975) * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    values = np.array([1.0] * b + [-1.0] * c + [0.0] * (n - b - c))
    assert mean_interval(values, Interval(-1.0, 1.0)) == pytest.approx(
        (p12 - p21 - half, p12 - p21 + half)
    )
    low, high = mean_interval(np.zeros(10), Interval(-1.0, 1.0))
    assert low < 0 < high
    low, high = mean_interval(np.ones(10), Interval(0.0, 1.0))
    assert 0.6 < low < 0.9
    assert high == 1


@pytest.mark.parametrize("groups", [2, 110, 700])
def test_every_draw_takes_as_many_groups_as_there_are(groups):
    counts = np.concatenate(_counts(groups, 2500, identity_seed(0, "bootstrap")))
    assert counts.shape == (2500, groups)
    assert (counts.sum(1, dtype=int) == groups).all()
    spread = counts[:, 0].astype(float).var()
    assert spread == pytest.approx(1 - 1 / groups, rel=0.15), "a binomial count"


def test_the_draws_do_not_depend_on_how_many_fit_into_memory(monkeypatch):
    values = np.random.default_rng(0).random((37, 3))
    expected = Bootstrap(0).means(values)
    monkeypatch.setattr(intervals, "_NUMBERS_AT_ONCE", 37 * 10 + 5)
    monkeypatch.setattr(intervals, "_CACHED_BYTES", 0)
    assert Bootstrap(0).means(values) == pytest.approx(expected, abs=1e-12)


def test_ten_thousand_draws_over_110_patients_are_quick():
    values = np.random.default_rng(0).random(110)
    _counts.cache_clear()
    started = time.process_time()
    Bootstrap(0).mean(values)
    assert time.process_time() - started < 0.3  # about 0.02 s on an idle core


@given(st.integers(1, 50_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(counts: tuple[int, int]) -> None:
    correct, n = counts
    for confidence in (0.95, 0.8):
        theirs = binomtest(correct, n).proportion_ci(confidence, method="wilson")
        assert wilson_interval(correct, n, confidence) == pytest.approx(tuple(theirs), abs=1e-12)


def test_wilson_of_all_or_none_ends_exactly_at_the_limit() -> None:
    assert wilson_interval(0, 7).low == 0.0
    assert wilson_interval(7, 7).high == 1.0


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_counts_that_are_no_share_are_refused(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"not {correct} of {n}"):
        wilson_interval(correct, n)


def test_paired_interval_of_a_worked_example() -> None:
    # D. G. Altman et al., Statistics with Confidence (2000), table 6.2: 0.011 to 0.226.
    low, high = paired_interval(PairedCounts(14, 5, 0, 22))
    assert (low, high) == (pytest.approx(0.011, abs=6e-4), pytest.approx(0.226, abs=6e-4))


@pytest.mark.parametrize(
    "counts",
    [
        PairedCounts(700, 140, 40, 120),
        PairedCounts(300, 250, 250, 200),
        PairedCounts(20, 30, 5, 945),
    ],
)
def test_paired_interval_is_close_to_tangos_score_interval(counts: PairedCounts) -> None:
    assert paired_interval(counts) == pytest.approx(_tango(counts), abs=0.003)


@pytest.mark.parametrize(
    "shares", [(0.6, 0.2, 0.1, 0.1), (0.9, 0.06, 0.02, 0.02), (0.1, 0.4, 0.05, 0.45)]
)
def test_paired_interval_covers_the_true_difference_95_times_in_100(
    shares: tuple[float, float, float, float],
) -> None:
    n, difference = 18, shares[1] - shares[2]
    tables = [t for t in product(range(n + 1), repeat=3) if sum(t) <= n]
    counts = [PairedCounts(*t, n - sum(t)) for t in tables]
    covered = np.array([_holds(paired_interval(c), difference) for c in counts])
    coverage = multinomial.pmf(np.array(counts), n, shares)[covered].sum()
    assert 0.93 < coverage < 0.999


@given(st.tuples(*[st.integers(0, 400)] * 4).filter(any))
def test_swapping_the_measurements_turns_the_interval_around(
    counts: tuple[int, int, int, int],
) -> None:
    both, first, second, neither = counts
    low, high = paired_interval(PairedCounts(both, first, second, neither))
    swapped = paired_interval(PairedCounts(both, second, first, neither))
    assert swapped == pytest.approx((-high, -low), abs=1e-12)
    assert -1 - 1e-12 <= low <= (first - second) / sum(counts) <= high <= 1 + 1e-12


def _holds(interval: tuple[float, float], value: float) -> bool:
    return interval[0] <= value <= interval[1]


def _tango(counts: PairedCounts) -> tuple[float, float]:
    """T. Tango, Statistics in Medicine 17 (1998), 891-908: a score interval."""
    _, b, c, _ = counts
    n = sum(counts)

    def score(delta: float) -> float:
        first = -b - c + (2 * n - b + c) * delta
        second = -c * delta * (1 - delta)
        p21 = (math.sqrt(max(first**2 - 8 * n * second, 0)) - first) / (4 * n)
        return (b - c - n * delta) / math.sqrt(n * (2 * p21 + delta * (1 - delta)))

    z, estimate = 1.959963985, (b - c) / n
    low = brentq(lambda d: score(d) - z, -0.999, estimate)
    return low, brentq(lambda d: score(d) + z, estimate, 0.999)
