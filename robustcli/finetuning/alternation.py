"""What freezing saves of a training step's time: timed in turns with a step that freezes nothing.

One after the other in one process, so that whatever else the machine does meets all alike; the
order of the turns rotates.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from robustcli.finetuning.freezing import freeze, hold_statistics
from robustcli.training.learning import Learner
from robustcli.training.trial import make_step

_WARM = 2
"""Rounds that do not count: kernels are compiled and the optimizer's state is made in them."""
_RESAMPLES = 2_000


@dataclass(frozen=True)
class Ratio:
    """Seconds of a step over those of a step that freezes nothing.

    Args:
        median: Over the rounds.
        low: Lower end of the 95 % bootstrap interval of the median over the rounds.
        high: Its upper end.
    """

    median: float
    low: float
    high: float


def seconds_ratios(
    learner: Learner, frozen: Sequence[Collection[str]], size: int,
    device: torch.device, rounds: int = 15,
) -> list[Ratio]:  # fmt: skip
    """A ratio for each set of frozen parameters.

    Args:
        learner: The network with its recipe; it is copied and stays as it is.
        frozen: Sets of names of the network's parameters.
        size: Images of a step.
        device: Where the steps are taken.
        rounds: How often each step is taken.
    """
    steps = [make_step(_frozen(learner, names), size, device) for names in ((), *frozen)]
    seconds = np.zeros((_WARM + rounds, len(steps)))
    for number, row in enumerate(seconds):
        for turn in range(len(steps)):
            place = (turn + number) % len(steps)
            row[place] = steps[place]()
    counted = seconds[_WARM:]
    return [_ratio(counted[:, place] / counted[:, 0]) for place in range(1, len(steps))]


def _frozen(learner: Learner, names: Collection[str]) -> Learner:
    own = copy.deepcopy(learner)
    own.network.train()
    freeze(own.network, names)
    hold_statistics(own.network)
    return own


def _ratio(ratios: NDArray[np.float64]) -> Ratio:
    drawn = np.random.default_rng(0).choice(ratios, (_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Ratio(float(np.median(ratios)), float(low), float(high))
