"""Weights files to read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.adapters.loading import Shapes
from robustcli.models.architectures import architecture
from robustcli.models.vmamba import VMamba, build

STATE = {"stem.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.tensor([1.0, -1.0])}


def saved(content: object, path: Path, **options: Any) -> Path:
    """`path`, with `content` written there by torch."""
    torch.save(content, path, **options)
    return path


def empty(shapes: Shapes) -> dict[str, Tensor]:
    """Weights of these names and shapes, with any values."""
    return {key: torch.empty(shape) for key, shape in shapes.items()}


def on_meta(variant: str) -> VMamba:
    """The network without its numbers."""
    with torch.device("meta"):
        return build(variant)


def meta_state(name: str) -> dict[str, Tensor]:
    """Names and shapes of the network `name` of the registry as published, without numbers."""
    return dict(_published(name))


@cache
def _published(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        state: dict[str, Tensor] = architecture(name).build().state_dict()
    return state


def random_state(network: nn.Module) -> dict[str, Tensor]:
    """Weights for `network` that no initialisation gives; its counters as they are."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = network.state_dict()
    return {
        key: torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
        for key, t in state.items()
    }


def assert_holds(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Every tensor of `state` is in `network`, under its name, bit for bit."""
    result = network.state_dict()
    assert set(result) == set(state)
    for key, tensor in state.items():
        torch.testing.assert_close(result[key], tensor, rtol=0, atol=0)
