"""What a network does with a made-up image, and how long a training step takes, by trying."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.adapters.first_pass import (
    Tried,
    check_finite,
    check_scores,
    first_pass,
    made_up,
    norms_of_one_value,
)
from robustcli.adapters.model import AUTOCAST
from robustcli.training.learning import Learner
from robustcli.training.lit_segmenter import outputs
from robustcli.training.task import Selection


def make_step(learner: Learner, size: int, device: torch.device) -> Callable[[], float]:
    """A function that takes a training step of `learner` and returns its seconds.

    Args:
        learner: Its weights are changed; frozen ones stay out of the optimizer.
        size: Images of the step; they are made up.
        device: Where it is taken.
    """
    learner.network.to(device)
    optimizer = learner.make_optimizer()
    images = torch.rand(size, *learner.input_shape, device=device)

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


def try_out(
    selection: Selection, network: nn.Module, arguments: Mapping[str, Any]
) -> Sequence[str]:
    """Puts one made-up image through `network` on the device of this process, without learning.

    No other process takes part, and the network comes back to where it was, as it was.

    Args:
        selection: What is to be trained.
        network: The network.
        arguments: Those of its builder.

    Returns:
        The batch norms that saw a single value per channel, and so cannot train on one image.

    Raises:
        UsageError: The network cannot take such an image, or answers otherwise than its kind does.
    """
    entry, shape = selection.entry, selection.input_shape
    kind = f"{entry.builder}:{entry.variant}"
    recipe = selection.recipe
    tried = Tried(entry.name, kind, arguments, shape, "--window", recipe.precision)
    device, home = _own_device(selection), next(network.parameters()).device
    autocast, learns = AUTOCAST.get(recipe.precision), network.training

    def forward() -> Any:
        images = made_up(shape).to(device).float() / 255
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            if selection.task.name == "seg":
                return outputs(network, images)[0]
            return network(images)

    network.to(device).eval()
    try:
        with norms_of_one_value(network) as norms:
            answer = first_pass(forward, tried)
    finally:
        network.to(home).train(learns)
    if selection.task.name == "cls":
        check_scores(answer, getattr(network, "num_classes", None), tried)
    else:
        assert isinstance(answer, Tensor)
        check_finite(answer.float(), tried)
    return norms


def _own_device(selection: Selection) -> torch.device:
    """The device of this process among several, as Lightning will choose it."""
    device = selection.on.device
    if device.type == "cuda" and selection.on.world > 1:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device
