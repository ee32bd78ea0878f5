"""When nnU-Net's training does what: its learning rate, and which epoch is best.

Source: nnU-Net v2.1.1, `PolyLRScheduler` and `nnUNetLogger`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from robustcli.finetune.nnunet.recipe import NnUNetRecipe


def poly_lr(epoch: int, recipe: NnUNetRecipe) -> float:
    """The learning rate of `epoch`, the first being 0: lr * (1 - epoch / epochs) ** exponent.

    Constant within an epoch; 0 from the schedule's end on.
    """
    left = max(0.0, 1 - epoch / recipe.epochs)
    return float(recipe.lr * left**recipe.exponent)


@dataclass(frozen=True)
class BestEpoch:
    """The moving average of the pseudo dice, and the best that it has been; immutable.

    Args:
        ema: The average after the last epoch; None before the first.
        best: The highest average so far.
        is_new: Whether the last epoch set it: its weights are `checkpoint_best.pth`.
    """

    ema: float | None = None
    best: float | None = None
    is_new: bool = False

    def after(self, dice: float, weight: float = 0.9) -> BestEpoch:
        """The state after an epoch with pseudo dice `dice`; `weight` is the old average's share.

        Deviation: an epoch without any foreground (NaN) leaves the average as it was. Upstream's
        average would stay NaN from then on and no epoch could be best any more.
        """
        if math.isnan(dice):
            return replace(self, is_new=False)
        ema = dice if self.ema is None else weight * self.ema + (1 - weight) * dice
        is_new = self.best is None or ema > self.best
        return BestEpoch(ema, ema if is_new else self.best, is_new)
