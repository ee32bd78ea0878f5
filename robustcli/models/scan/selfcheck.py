"""A short check of a scan backend against the float64 reference, forward and backward."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from robustcli.models.scan import reference


def worst_error(backend: ModuleType, seed: int = 0) -> float:
    """The largest difference of `backend.ss2d_scan` from the reference, relative to its range.

    Over the output and every gradient, on random input with an odd number of channels and pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = _arguments(generator)
    exact = _outputs(reference, [t.double() for t in inputs])
    found = _outputs(backend, inputs)
    pairs = zip(found, exact, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def _arguments(generator: torch.Generator) -> list[Tensor]:
    batch, channels, states, height, width = 2, 19, 3, 7, 5

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return [
        normal(batch, channels, height, width),
        normal(batch, 4, channels, height, width),
        -torch.rand((4 * channels, states), generator=generator) - 0.1,
        normal(batch, 4, states, height, width),
        normal(batch, 4, states, height, width),
        normal(4 * channels),
        normal(4 * channels),
    ]


def _outputs(backend: ModuleType, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    y = backend.ss2d_scan(*leaves)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]
