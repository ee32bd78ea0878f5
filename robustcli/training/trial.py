"""How long a training step takes, by trying."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from robustcli.training.learning import Learner


def make_step(learner: Learner, size: int, device: torch.device) -> Callable[[], float]:
    """A function that takes a training step of `learner` and returns its seconds.

    Args:
        learner: Its weights are changed; frozen ones stay out of the optimizer.
        size: Images of the step; they are made up.
        device: Where it is taken.
    """
    window = learner.recipe.window
    learner.network.to(device)
    optimizer = learner.make_optimizer()
    images = torch.rand(size, 3, window, window, device=device)

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        learner.trial_loss(images).backward()
        optimizer.step()
        images[0, 0, 0, 0].item()  # waits until the device is done
        return time.perf_counter() - started

    return step


def step_seconds(learner: Learner, size: int, device: torch.device) -> float:
    """Seconds of a training step, the second of two, of `size` images; the weights are changed."""
    step = make_step(learner, size, device)
    step()
    return step()
