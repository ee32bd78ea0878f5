"""exp, softplus and sigmoid of the CPU kernels against NumPy in float64."""

import numpy as np
import pytest
from numba import njit

from robustcli.models.scan import cpu_math
from robustcli.models.scan.cpu_lanes import WIDTH, load, store


def of_array(function):
    """`function`, which takes lanes, as one that takes an array."""

    @njit
    def run(source, target):
        for at in range(0, source.size, WIDTH):
            store(target, at, WIDTH, function(load(source, at, WIDTH)))

    def call(x):
        y = np.empty_like(x)
        run(x, y)
        return y

    return call


@pytest.mark.parametrize(
    ("ours", "exact", "low", "high"),
    [
        (cpu_math.exp, np.exp, -87, 88),
        (cpu_math.softplus, lambda x: np.logaddexp(0, x), -80, 30),
        (cpu_math.sigmoid, lambda x: 1 / (1 + np.exp(-x)), -80, 80),
    ],
    ids=["exp", "softplus", "sigmoid"],
)
def test_exact_to_a_few_units_in_the_last_place(ours, exact, low, high):
    x = np.random.default_rng(0).uniform(low, high, 20_000).astype(np.float32)
    x[:4] = low, high, 0.0, -0.0
    np.testing.assert_allclose(of_array(ours)(x), exact(x.astype(np.float64)), rtol=4e-7)


@pytest.mark.parametrize("function", [cpu_math.exp, cpu_math.softplus, cpu_math.sigmoid])
def test_nan_stays_nan_and_in_its_lane(function):
    x = np.zeros(WIDTH, np.float32)
    x[5] = np.nan
    assert np.flatnonzero(np.isnan(of_array(function)(x))).tolist() == [5]
