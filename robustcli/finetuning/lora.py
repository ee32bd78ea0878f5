"""LoRA on the projections of state-space blocks, through peft.

Source: Hu et al., "LoRA" (arXiv 2106.09685). The heads are new in the target task and train whole;
all else stands still. What is written is the plain network with the adapters merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.core.seeds import identity_seed
from robustcli.finetuning.gradients import SCANS

RANK, ALPHA = 8, 16
_PROJECTIONS = ("in_proj", "x_proj", "x_proj_b", "out_proj")
_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."


def projections(network: nn.Module) -> list[str]:
    """The names of the linear projections inside state-space blocks, found by type of module.

    VMamba's `x_proj` is a bare tensor for four directions, not a layer: it is not among them.
    """
    return [
        f"{place}.{name}" if place else name
        for place, module in network.named_modules()
        if isinstance(module, SCANS)
        for name, child in module.named_children()
        if name in _PROJECTIONS and isinstance(child, nn.Linear)
    ]


def adapt(network: nn.Module, heads: Sequence[str], *, name: str, seed: int) -> None:
    """Puts adapters into `network`; only they and its heads still train.

    Args:
        network: Changed in place; its output stays the same until a first step.
        heads: Beginnings of the names of the layers that train whole.
        name: Of the network, for messages.
        seed: Of the run; the adapters begin with random numbers.

    Raises:
        UsageError: The network has no such projections.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

    targets = projections(network)
    if not targets:
        raise UsageError(
            f"`--mode lora` finds nothing to adapt in `{name}`.",
            "Adapters go onto the projections of state-space blocks, and it has none.",
            "Use `--mode freeze --freeze-scope all`.",
        )
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(identity_seed("lora", name, seed, bits=63))
        inject_adapter_in_model(settings, network)
    for tensor, parameter in network.named_parameters():
        parameter.requires_grad_(
            tensor.startswith(tuple(heads)) or _DOWN in tensor or _UP in tensor
        )


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The plain network's state, from that of a network with adapters.

    Each adapted weight is W + (ALPHA / RANK) B A.
    """
    plain = {}
    for name, tensor in state.items():
        if _DOWN in name or _UP in name:
            continue
        down = state.get(name.replace(_BASE, _DOWN)) if _BASE in name else None
        if down is not None:
            tensor = tensor + ALPHA / RANK * state[name.replace(_BASE, _UP)] @ down
        plain[name.replace(_BASE, ".")] = tensor
    return plain
