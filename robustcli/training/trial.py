"""What a network does with a made-up image, and how long a training step takes, by trying."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.adapters import model
from robustcli.adapters.model import AUTOCAST
from robustcli.training.lit_module import LitModule
from robustcli.training.lit_segmenter import outputs
from robustcli.training.trainer import Machine
from robustcli.training.training_task import TrainPlan


def make_step(lit_module: LitModule, size: int, device: torch.device) -> Callable[[], float]:
    """A function that takes a training step of `lit_module` and returns its seconds.

    Args:
        lit_module: Its weights are changed; frozen ones stay out of the optimizer.
        size: Images of the step; they are made up.
        device: Where it is taken.
    """
    lit_module.network.to(device)
    optimizer = lit_module.make_optimizer()
    images = torch.rand(size, *lit_module.input_shape, device=device)

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        lit_module.trial_loss(images).backward()
        optimizer.step()
        images[0, 0, 0, 0].item()  # waits until the device is done
        return time.perf_counter() - started

    return step


def step_seconds(lit_module: LitModule, size: int, device: torch.device) -> float:
    """Seconds of a training step, the second of two, of `size` images; the weights are changed."""
    step = make_step(lit_module, size, device)
    step()
    return step()


def try_out(plan: TrainPlan, network: nn.Module) -> Sequence[str]:
    """Puts one made-up image through `network` on the device of this process, without learning.

    No other process takes part, and the network comes back to where it was, as it was.

    Args:
        plan: The training.
        network: The network.

    Returns:
        The batch norms that saw a single value per channel, and so cannot train on one image.

    Raises:
        UsageError: The network cannot take such an image, or answers otherwise than its kind does.
    """
    entry, shape, recipe = plan.entry, plan.input_shape, plan.recipe
    kind, arguments = f"{entry.builder}:{entry.variant}", plan.config.model_args
    tried = model.Trial(entry.name, kind, arguments, shape, "--window", recipe.precision)
    device, home = _own_device(plan.machine), next(network.parameters()).device
    autocast, learns = AUTOCAST.get(recipe.precision), network.training

    def forward() -> Any:
        images = model.made_up_image(shape).to(device).float() / 255
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            if plan.task.name == "seg":
                return outputs(network, images)[0]
            return network(images)

    network.to(device).eval()
    try:
        with model.norms_of_one_value(network) as norms:
            answer = model.first_pass(forward, tried)
    finally:
        network.to(home).train(learns)
    if plan.task.name == "cls":
        model.check_scores(answer, getattr(network, "num_classes", None), tried)
    else:
        assert isinstance(answer, Tensor)
        model.check_finite(answer.float(), tried)
    return norms


def _own_device(machine: Machine) -> torch.device:
    """The device of this process among several, as Lightning will choose it."""
    device = machine.device
    if device.type == "cuda" and machine.world > 1:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device
