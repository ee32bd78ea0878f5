"""The learning rate, and which epoch is best."""

from __future__ import annotations

import math

import pytest
import torch

from robustcli.finetune.nnunet.recipe import RECIPES
from robustcli.finetune.nnunet.schedule import BestEpoch, poly_lr

FULL = RECIPES["nnunet"]


def test_the_learning_rate_is_torchs_polynomial_one() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=FULL.lr)
    theirs = torch.optim.lr_scheduler.PolynomialLR(optimizer, FULL.epochs, FULL.exponent)
    for epoch in range(1001):
        assert poly_lr(epoch, FULL) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        theirs.step()


def test_the_learning_rate_by_hand_and_after_the_end() -> None:
    assert poly_lr(0, FULL) == 0.01
    assert poly_lr(500, FULL) == pytest.approx(0.01 * 0.5**0.9)
    assert poly_lr(1000, FULL) == poly_lr(1200, FULL) == 0


def test_the_average_starts_with_the_first_value_and_moves_by_a_tenth() -> None:
    states = [BestEpoch()]
    for dice in (0.5, 0.7, 0.1, 0.9):
        states.append(states[-1].after(dice))
    assert [s.ema for s in states[1:]] == pytest.approx([0.5, 0.52, 0.478, 0.5202])
    assert [s.is_new for s in states[1:]] == [True, True, False, True]
    assert states[3].best == pytest.approx(0.52)
    assert states[4].best == pytest.approx(0.5202)


def test_an_equal_average_is_not_new() -> None:
    assert not BestEpoch().after(0.5).after(0.5).is_new


def test_an_epoch_without_foreground_changes_nothing() -> None:
    before = BestEpoch().after(0.5)
    after = before.after(math.nan)
    assert (after.ema, after.best, after.is_new) == (0.5, 0.5, False)
    assert BestEpoch().after(math.nan) == BestEpoch()
