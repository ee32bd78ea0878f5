"""The sign-flip test against SciPy's permutation test, and that it keeps its level."""

import numpy as np
import pytest
from scipy import stats

from robustcli.evaluation.sign_flip import DRAWS, EXACT_UP_TO, sign_flip_p, smallest_p


def theirs(values):
    """Swapping the two members of a pair flips the sign of its difference."""
    return stats.permutation_test(
        (values, np.zeros(len(values))),
        lambda a, b, axis: (a - b).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    ).pvalue


@pytest.mark.parametrize("units", [2, 5, 10, 14])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_few_units_are_tested_exactly_as_scipy_does(units, shift):
    values = np.random.default_rng(units).normal(shift, 0.5, units)
    assert sign_flip_p(values) == pytest.approx(theirs(values), abs=1e-12)


def test_many_units_come_close_to_the_exact_value():
    values = np.random.default_rng(4).normal(0.12, 0.5, EXACT_UP_TO + 2)
    assert sign_flip_p(values) == pytest.approx(theirs(values), abs=0.015)
    assert sign_flip_p(values) == sign_flip_p(values)
    assert sign_flip_p(values, 1) != sign_flip_p(values, 2)


def test_units_without_a_difference_say_nothing():
    values = np.array([0.2, -0.1, 0.4, 0.3])
    assert sign_flip_p(np.concatenate([values, np.zeros(40)])) == sign_flip_p(values)
    assert sign_flip_p(np.zeros(5)) == 1.0


def test_equal_sums_in_another_order_count_as_equal():
    assert sign_flip_p(np.array([0.1, 0.2, 0.3, -0.6])) == 1.0, "the sum is 0 but for rounding"


@pytest.mark.parametrize("units", [3, EXACT_UP_TO, EXACT_UP_TO + 20])
def test_the_smallest_p_is_that_of_differences_of_one_sign(units):
    found = sign_flip_p(np.linspace(1, 2, units))
    assert found == pytest.approx(smallest_p(units), abs=2 / DRAWS)
    assert found >= smallest_p(units)


def test_without_a_difference_one_in_twenty_is_below_five_percent():
    generator = np.random.default_rng(9)
    found = [sign_flip_p(generator.normal(size=9)) for _ in range(1500)]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.02)
