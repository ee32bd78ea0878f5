"""The lanes of the CPU kernels against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from robustcli.models.scan import cpu_lanes
from robustcli.models.scan.cpu_lanes import WIDTH, fill, load, store, total, turn


@njit
def copy(source, at, count, target, to):
    store(target, to, count, load(source, at, count))


@njit
def combine(x, y, z):
    a, b, two = load(x, 0, WIDTH), load(y, 0, WIDTH), np.float32(2)
    store(z, 0, WIDTH, (a + b) * (a - b) / (two * a + fill(two) * two))
    return total(a)


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


@njit
def slope(x):
    return cpu_lanes.softplus_and_slope(x)[1]


@pytest.mark.parametrize(
    ("ours", "exact", "low", "high"),
    [
        (cpu_lanes.exp, np.exp, -87, 88),
        (cpu_lanes.softplus, lambda x: np.logaddexp(0, x), -80, 30),
        (slope, lambda x: 1 / (1 + np.exp(-x)), -80, 80),
    ],
    ids=["exp", "softplus", "slope of softplus"],
)
def test_exact_to_a_few_units_in_the_last_place(ours, exact, low, high):
    x = np.random.default_rng(0).uniform(low, high, 20_000).astype(np.float32)
    x[:4] = low, high, 0.0, -0.0
    np.testing.assert_allclose(of_array(ours)(x), exact(x.astype(np.float64)), rtol=4e-7)
    if ours is cpu_lanes.exp:
        x = np.float32([-np.inf, -1000, -87, 88, 1000, np.inf] + [0] * (WIDTH - 6))
        limited = exact(np.clip(x.astype(np.float64), low, high))
        np.testing.assert_allclose(of_array(ours)(x), limited, rtol=4e-7)


@pytest.mark.parametrize("function", [cpu_lanes.exp, cpu_lanes.softplus, slope])
def test_nan_stays_nan_and_in_its_lane(function):
    x = np.zeros(WIDTH, np.float32)
    x[5] = np.nan
    assert np.flatnonzero(np.isnan(of_array(function)(x))).tolist() == [5]


@njit
def turned(source, step, rows, columns, target, leap):
    turn(source, np.uintp(2), step, rows, columns, target, np.uintp(3), leap)


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (16, 5), (7, 16), (1, 1), (3, 11)])
def test_turns_rows_into_columns_and_touches_nothing_else(rows, columns):
    source = np.random.default_rng(0).normal(size=500).astype(np.float32)
    target = np.zeros(500, np.float32)
    turned(source, np.uintp(21), np.uintp(rows), np.uintp(columns), target, np.uintp(18))
    expected = np.zeros(500, np.float32)
    for c in range(columns):
        for r in range(rows):
            expected[3 + c * 18 + r] = source[2 + r * 21 + c]
    np.testing.assert_array_equal(target, expected)
