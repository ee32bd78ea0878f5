"""Learning rates as pure functions of the step, so that going on needs nothing but the step."""

from __future__ import annotations

import math
from collections.abc import Callable

WARMUP_SHARE = 0.05
FINAL_FACTOR = 0.01


def constant(step: int, total: int) -> float:
    """1 at every step."""
    return 1.0


def warmup_cosine(step: int, total: int) -> float:
    """Linear from near 0 over the first 5 % of the steps, then half a cosine down to 1 %.

    Args:
        step: Steps done before.
        total: Steps of the whole training.
    """
    warm = max(1, round(WARMUP_SHARE * total))
    if step < warm:
        return (step + 1) / warm
    done = min(1.0, (step - warm) / max(1, total - warm))
    return FINAL_FACTOR + (1 - FINAL_FACTOR) * (1 + math.cos(math.pi * done)) / 2


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": constant,
    "warmup-cosine": warmup_cosine,
}
"""Each gives the factor on the learning rate, of steps done and steps in all."""
EXTENDABLE = frozenset({"constant"})
"""Those that do not depend on how long the training is: more epochs may be added to them."""
