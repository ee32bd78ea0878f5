"""Freezing that holds and that pays.

A frozen tensor leaves the graph, the optimizer and the checkpointed moments: `requires_grad` is off
before the optimizer is built and its gradient is None. With zero gradients instead, momentum and
weight decay would go on moving it. Normalisation with running statistics stands still where all
its parameters are frozen. Layers before the first trainable one then build no graph by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_Norms = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def freeze(network: nn.Module, names: Collection[str]) -> None:
    """Freezes the parameters called `names`; a tensor that has several names counts under each.

    Raises:
        KeyError: The network has no such parameter.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name in names:
        parameters[name].requires_grad_(False)
        parameters[name].grad = None


def hold_statistics(network: nn.Module) -> None:
    """Puts the normalisations whose parameters are all frozen into eval mode.

    To be called after every `network.train()`, which would wake them.
    """
    for module in network.modules():
        if isinstance(module, _Norms) and module.track_running_stats:
            own = list(module.parameters(recurse=False))
            if own and not any(p.requires_grad for p in own):
                module.eval()


@dataclass(frozen=True)
class Saving:
    """What a set of frozen tensors saves.

    Args:
        parameters: All elements.
        frozen: Frozen elements.
        optimizer_bytes: Of the optimizer's state with nothing frozen.
        optimizer_bytes_saved: Of it that the frozen ones would have taken.
        flops: Of convolutions and matrix products in one training step with nothing frozen;
            the scan is not among them.
        flops_saved: Of them that freezing leaves out.
    """

    parameters: int
    frozen: int
    optimizer_bytes: int
    optimizer_bytes_saved: int
    flops: int
    flops_saved: int


def saving(
    network: nn.Module,
    names: Collection[str],
    sample: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    moments: int,
) -> Saving:
    """What freezing `names` saves in a training step on `sample`; the network comes back as it was.

    Args:
        network: In training mode; its gradients are cleared.
        names: Parameters to freeze.
        sample: A batch of inputs.
        loss: Of the network's output, a scalar.
        moments: Tensors that the optimizer keeps per parameter (SGD with momentum 1, Adam 2).
    """
    parameters = dict(network.named_parameters())
    before = {name: p.requires_grad for name, p in parameters.items()}
    full = _flops(network, sample, loss)
    freeze(network, names)
    try:
        frozen_flops = _flops(network, sample, loss)
    finally:
        for name, p in parameters.items():
            p.requires_grad_(before[name])
    counts = {name: p.numel() for name, p in parameters.items()}
    total, gone = sum(counts.values()), sum(counts[name] for name in set(names) & set(counts))
    state = 4 * moments
    return Saving(total, gone, state * total, state * gone, full, full - frozen_flops)


def _flops(network: nn.Module, sample: Tensor, loss: Callable[[Tensor], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        loss(network(sample)).backward()
    network.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())
