"""Intervals over groups: what they cover, and that they are the same again."""

import time

import numpy as np
import pytest
from scipy import stats

from robustcli.core.seeds import identity_seed
from robustcli.evaluation.bootstrap import DRAWS, Bootstrap, _counts


def test_the_interval_is_that_of_scipys_percentile_bootstrap():
    values = np.random.default_rng(3).beta(8, 2, 60)
    low, high = Bootstrap(0).mean(values)
    rng = np.random.default_rng(0)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=DRAWS, method="percentile", rng=rng
    ).confidence_interval
    assert low == pytest.approx(theirs.low, abs=2e-3)
    assert high == pytest.approx(theirs.high, abs=2e-3)


def test_groups_weigh_as_many_images_as_they_have():
    """The share of images, resampling groups: one large group decides, or is not drawn at all."""
    numerators, denominators = np.array([90.0, 1, 1]), np.array([90.0, 10, 10])
    low, high = Bootstrap(0).ratio(numerators, denominators)
    assert low == pytest.approx(0.1), "the large group is absent from 8 of 27 draws"
    assert high == pytest.approx(1.0), "and alone in 1 of 27"


def test_about_95_of_100_intervals_hold_the_true_mean():
    generator, true = np.random.default_rng(11), 0.8
    hits = 0
    for trial in range(400):
        low, high = Bootstrap(trial, draws=500).mean(generator.beta(8, 2, 50))
        hits += low <= true <= high
    assert 0.91 <= hits / 400 <= 0.98


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


def test_one_group_has_no_interval():
    assert Bootstrap(0).mean(np.array([0.5])) is None


@pytest.mark.parametrize("groups", [2, 110, 700])
def test_every_draw_takes_as_many_groups_as_there_are(groups):
    counts = _counts(groups, 2500, identity_seed(0, "bootstrap"))
    assert counts.shape == (2500, groups)
    assert (counts.sum(1, dtype=int) == groups).all()
    spread = counts[:, 0].astype(float).var()
    assert spread == pytest.approx(1 - 1 / groups, rel=0.15), "a binomial count"


def test_ten_thousand_draws_over_110_patients_are_quick():
    values = np.random.default_rng(0).random(110)
    _counts.cache_clear()
    started = time.process_time()
    Bootstrap(0).mean(values)
    assert time.process_time() - started < 0.3  # about 0.02 s on an idle core
