"""How long a training step takes, by trying."""

from __future__ import annotations

import time

import torch

from robustcli.finetune.module import OPTIMIZERS, SegmentationModule
from robustcli.finetune.outputs import outputs
from robustcli.models.weight_decay import parameter_groups


def step_seconds(module: SegmentationModule, size: int, device: torch.device) -> float:
    """Seconds of a training step, the second of two, of `size` images; the weights are changed."""
    recipe = module.recipe
    network = module.network.to(device)
    groups = parameter_groups(network, recipe.weight_decay, module.decays)
    optimizer = OPTIMIZERS[recipe.optimizer](groups, lr=recipe.lr)
    images = torch.rand(size, 3, recipe.window, recipe.window, device=device)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = module.loss(outputs(network, images), images[:, :1].round())
        loss.backward()
        optimizer.step()
        images[0, 0, 0, 0].item()  # waits until the device is done
        seconds = time.perf_counter() - started
    return seconds
