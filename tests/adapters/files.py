"""Weights files and training runs to load, and small timm models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import robustcli.timm_models  # noqa: F401  registers
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.networks import create
from robustcli.adapters.strict_loading import layout
from robustcli.adapters.training_run import WeightsHeader, write_weights

STATE = {"stem.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.tensor([1.0, -1.0])}


def saved(content: object, path: Path, **options: Any) -> Path:
    """`path`, with `content` written there by torch."""
    torch.save(content, path, **options)
    return path


def vim_as_run(path: Path) -> ModelRequest:
    """A small Vim with the 1,000 outputs of its paper's code, saved at `path`; ten are classes.

    The other outputs are the largest ones.
    """
    arguments = {"depth": 1, "dim": 16}
    network = create("vim", {"num_classes": 1000, **arguments})
    with torch.no_grad():
        network.head.bias[10:] = 100.0
    return ModelRequest("vim", saved(network.state_dict(), path), arguments)


def meta_state(name: str) -> dict[str, Tensor]:
    """Names and shapes of the network `name` of the registry as published, without numbers."""
    return {key: torch.empty(shape, device="meta") for key, shape in layout(name).items()}


def random_state(network: nn.Module) -> dict[str, Tensor]:
    """Weights for `network` that no initialisation gives; its counters as they are."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = network.state_dict()
    return {
        key: torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
        for key, t in state.items()
    }


OLD = (
    ("patch_embed.0.", "patch_embed.proj."),
    ("patch_embed.2.", "patch_embed.norm."),
    ("classifier.norm.", "norm."),
    ("classifier.head.", "head."),
)


def old_name(key: str) -> str:
    """The name in a v0 file of what is called `key` today (VMamba issue 53)."""
    key = re.sub(r"^(layers\.\d+\.blocks\.\d+)\.norm\.", r"\1.ln_1.", key)
    key = re.sub(r"^(layers\.\d+\.blocks\.\d+)\.op\.", r"\1.self_attention.", key)
    for new, old in OLD:
        key = old + key.removeprefix(new) if key.startswith(new) else key
    return key


def assert_holds(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Every tensor of `state` is in `network`, under its name, bit for bit."""
    result = network.state_dict()
    assert set(result) == set(state)
    for key, tensor in state.items():
        torch.testing.assert_close(result[key], tensor, rtol=0, atol=0)


def header(model: str, **changes: Any) -> WeightsHeader:
    """Of weights that a paper's protocol left, so that nothing in it is a default."""
    preprocessing: dict[str, Any] = {
        "window": 64, "channels": "bgr", "threshold": 0.6224593, "protocol": "paper",
        "trained_on": "ab", "images_sha256": "cd",
    }  # fmt: skip
    return WeightsHeader(model=model, **(preprocessing | changes))


def trained(folder: Path, model: str, **arguments: Any) -> Path:
    """`folder`, as the training of `model` built with `arguments` leaves it."""
    state = random_state(create(model, arguments))
    write_weights(folder / "weights.safetensors", state, header(model, arguments=arguments))
    return folder


TIMM_NAMES = ("vmamba_tiny_s1l8", "vmamba_tiny_v0", "vim_tiny")


def small_timm(name: str, **options: Any) -> Any:
    """The timm model `name` with three blocks of 16 or 32 channels."""
    if name.startswith("vmamba"):
        return timm.create_model(name, **{"depths": (1, 2), "dim": 16, **options})
    return timm.create_model(name, **{"depth": 3, "dim": 32, "img_size": 32, **options})
