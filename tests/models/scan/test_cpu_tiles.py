"""Turned tiles against NumPy's transpose."""

import numpy as np
import pytest
from numba import njit

from robustcli.models.scan.cpu_tiles import turn


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
