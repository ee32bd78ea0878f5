"""Which parameters weight decay touches, as each upstream has it.

Source: the training code of each project. VMamba leaves out biases and every one-dimensional
tensor; its `A_logs` and `dt_projs_bias` have two dimensions and are decayed. Mamba and Vim mark
A and D (both directions') as not to be decayed; Vim adds its position and class embeddings. The
segmentation projects decay everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

Decays = Callable[[str, nn.Parameter], bool]
"""Whether the parameter of that name is decayed."""

_MARKED = ("A_log", "A_b_log", "pos_embed", "cls_token")  # D has one dimension: left out anyway


def vmamba_decays(name: str, parameter: nn.Parameter) -> bool:
    """VMamba's rule."""
    return parameter.ndim > 1 and not name.endswith(".bias")


def mamba_decays(name: str, parameter: nn.Parameter) -> bool:
    """Mamba's and Vim's rule."""
    return vmamba_decays(name, parameter) and name.rsplit(".", 1)[-1] not in _MARKED


def everything_decays(name: str, parameter: nn.Parameter) -> bool:
    """The rule of the segmentation projects."""
    return True


def parameter_groups(
    network: nn.Module, weight_decay: float, decays: Decays
) -> list[dict[str, Any]]:
    """The trainable parameters as an optimizer takes them: decayed ones first, then the rest.

    Args:
        network: Whose parameters; frozen ones are left out.
        weight_decay: For the decayed ones.
        decays: One of this module's rules.
    """
    split: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            split[decays(name, parameter)].append(parameter)
    rates = {True: weight_decay, False: 0.0}
    return [{"params": split[kind], "weight_decay": rates[kind]} for kind in split if split[kind]]
