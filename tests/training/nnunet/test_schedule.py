"""The learning rate, and by what an epoch is best."""

from __future__ import annotations

import math

import pytest
import torch

from robustcli.training.nnunet.schedule import moving_average, poly_lr

EPOCHS, LR = 1000, 1e-2


def test_the_learning_rate_is_torchs_polynomial_one() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    theirs = torch.optim.lr_scheduler.PolynomialLR(optimizer, EPOCHS, 0.9)
    for epoch in range(1001):
        found = poly_lr(epoch, EPOCHS, LR)
        assert found == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        theirs.step()


def test_the_learning_rate_by_hand_and_after_the_end() -> None:
    assert poly_lr(0, EPOCHS, LR) == 0.01
    assert poly_lr(500, EPOCHS, LR) == pytest.approx(0.01 * 0.5**0.9)
    assert poly_lr(500, EPOCHS, LR, 2) == pytest.approx(0.01 * 0.25)
    assert poly_lr(1000, EPOCHS, LR) == poly_lr(1200, EPOCHS, LR) == 0


def test_the_average_starts_with_the_first_value_and_moves_by_a_tenth() -> None:
    found: list[float | None] = [None]
    for dice in (0.5, 0.7, 0.1, 0.9):
        found.append(moving_average(found[-1], dice))
    assert found[1:] == pytest.approx([0.5, 0.52, 0.478, 0.5202])
    assert moving_average(0.4, 0.8, 0.5) == pytest.approx(0.6)


def test_an_epoch_without_foreground_changes_nothing() -> None:
    assert moving_average(0.5, math.nan) == 0.5
    assert moving_average(None, math.nan) is None
