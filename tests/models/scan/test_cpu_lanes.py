"""The lanes of the CPU kernels against NumPy."""

import numpy as np
import pytest
from numba import njit

from robustcli.models.scan.cpu_lanes import WIDTH, at_least, at_most, fill, load, store, total


@njit
def copy(source, at, count, target, to):
    store(target, to, count, load(source, at, count))


@njit
def combine(x, y, z):
    a, b, two = load(x, 0, WIDTH), load(y, 0, WIDTH), np.float32(2)
    store(z, 0, WIDTH, (a + b) * (a - b) / (two * a + fill(two) * two))
    return total(a)


@njit
def clamp(x, low, high):
    store(x, 0, WIDTH, at_most(high, at_least(low, load(x, 0, WIDTH))))


@pytest.mark.parametrize("count", [0, 1, 7, 15, 16])
def test_reads_and_writes_no_further_than_asked(count):
    source, target = np.arange(40, dtype=np.float32), np.full(40, -1, np.float32)
    copy(source, 3, count, target, 5)
    expected = np.full(40, -1, np.float32)
    expected[5 : 5 + count] = source[3 : 3 + count]
    np.testing.assert_array_equal(target, expected)


def test_lanes_beyond_a_part_are_zero():
    @njit
    def widen(source, target):
        store(target, 0, WIDTH, load(source, 0, 3))

    target = np.full(WIDTH, 9, np.float32)
    widen(np.full(WIDTH, 7, np.float32), target)
    np.testing.assert_array_equal(target, [7] * 3 + [0] * 13)


def test_arithmetic_is_by_lane():
    x, y = np.random.default_rng(0).uniform(1, 2, (2, WIDTH)).astype(np.float32)
    z = np.empty(WIDTH, np.float32)
    assert combine(x, y, z) == pytest.approx(x.astype(np.float64).sum(), rel=1e-6)
    np.testing.assert_allclose(z, (x + y) * (x - y) / (2 * x + 4), rtol=2e-6, atol=1e-7)


def test_limits_let_nan_through():
    x = np.linspace(-4, 4, WIDTH, dtype=np.float32)
    x[3] = np.nan
    expected = np.clip(x, -1, 2)
    clamp(x, np.float32(-1), np.float32(2))
    np.testing.assert_array_equal(x, expected)
