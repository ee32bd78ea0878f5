"""Schedules as functions of the step."""

from __future__ import annotations

from itertools import pairwise

import pytest

from robustcli.training.schedules import EXTENDABLE, SCHEDULES, constant, warmup_cosine


def test_constant_is_one_however_long() -> None:
    assert {constant(step, total) for step in (0, 7, 99) for total in (100, 1000)} == {1.0}


def test_the_cosine_warms_up_peaks_and_ends_at_one_percent() -> None:
    factors = [warmup_cosine(step, 200) for step in range(200)]
    assert factors[0] == pytest.approx(1 / 10)
    assert factors[4] == pytest.approx(5 / 10)
    assert factors[9] == factors[10] == pytest.approx(1)
    assert factors[105] == pytest.approx((1 + 0.01) / 2)  # half way down
    assert warmup_cosine(200, 200) == pytest.approx(0.01)
    assert all(a > b for a, b in pairwise(factors[10:]))


def test_it_stays_at_the_end() -> None:
    assert warmup_cosine(300, 200) == warmup_cosine(200, 200)


def test_a_single_step_is_a_whole_one() -> None:
    assert warmup_cosine(0, 1) == 1


def test_only_what_ignores_the_length_may_be_extended() -> None:
    for name, factor in SCHEDULES.items():
        same = all(factor(step, 100) == factor(step, 150) for step in range(100))
        assert same == (name in EXTENDABLE)
