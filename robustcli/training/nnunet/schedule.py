"""When nnU-Net's training does what: its learning rate, and by what an epoch is best.

Source: nnU-Net v2.1.1, `PolyLRScheduler` and `nnUNetLogger`.
"""

from __future__ import annotations

import math


def poly_lr(epoch: int, epochs: int, lr: float, exponent: float = 0.9) -> float:
    """The learning rate of `epoch`, the first being 0: lr * (1 - epoch / epochs) ** exponent.

    Constant within an epoch; 0 from the schedule's end on.
    """
    left = max(0.0, 1 - epoch / epochs)
    return float(lr * left**exponent)


def moving_average(before: float | None, dice: float, weight: float = 0.9) -> float | None:
    """The moving average of the dice after an epoch; the highest yet makes its weights the best.

    Deviation: an epoch without any foreground (NaN) leaves the average as it was. Upstream's
    average would stay NaN from then on and no epoch could be best any more.

    Args:
        before: The average before; None before the first epoch.
        dice: Of the epoch.
        weight: The share of `before`.
    """
    if math.isnan(dice):
        return before
    return dice if before is None else weight * before + (1 - weight) * dice
