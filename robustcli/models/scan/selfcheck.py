"""A short check of a scan backend against the float64 reference, forward and backward."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from robustcli.models.scan import reference

SCANS = ("ss2d_scan", "selective_scan")


def home(backend: ModuleType) -> torch.device:
    """The device that `backend` is checked on: the CPU if it serves the CPU, else CUDA."""
    cpu = torch.device("cpu")
    return cpu if backend.refuses(cpu, torch.float32, 3) is None else torch.device("cuda")


def worst_error(
    backend: ModuleType,
    seed: int = 0,
    device: torch.device | str | None = None,
    gradients: bool = True,
    scans: tuple[str, ...] = SCANS,
) -> float:
    """The largest difference of `backend` from the reference, relative to the values' range.

    Over the output and the gradients, on random input with an odd number of channels and pixels;
    NaN if the backend computes one.

    Args:
        backend: The backend's module.
        seed: Of the random input.
        device: Where the backend computes; by default its home.
        gradients: Whether the backward pass is checked, too.
        scans: The functions that are checked, `ss2d_scan` and `selective_scan`.
    """
    errors: list[Tensor] = []
    for scan in scans:
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            inputs = _arguments(scan, generator)
            exact = _outputs(reference, scan, [t.double() for t in inputs])
            found = _outputs(backend, scan, [t.to(device or home(backend)) for t in inputs])
        pairs = zip(found, exact, strict=True)
        errors += [(a.cpu() - b).abs().max() / b.abs().max() for a, b in pairs]
    return float(torch.stack(errors).max())


def _arguments(scan: str, generator: torch.Generator) -> list[Tensor]:
    batch, channels, states, height, width = 2, 19, 3, 9, 8  # more steps than a tile of Triton's

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    if scan == "selective_scan":
        return [
            normal(batch, channels, height * width),
            normal(batch, channels, height * width),
            -normal(channels, states).abs() - 0.1,
            normal(batch, states, height * width),
            normal(batch, states, height * width),
            normal(channels),
            normal(channels),
        ]
    return [
        normal(batch, channels, height, width),
        normal(batch, 4, channels, height, width),
        -normal(4 * channels, states).abs() - 0.1,
        normal(batch, 4, states, height, width),
        normal(batch, 4, states, height, width),
        normal(4 * channels),
        normal(4 * channels),
    ]


def _outputs(backend: ModuleType, scan: str, inputs: list[Tensor]) -> list[Tensor]:
    *leaves, bias = (tensor.clone().requires_grad_() for tensor in inputs)
    y: Tensor = getattr(backend, scan)(*leaves, delta_bias=bias, delta_softplus=True)
    if not torch.is_grad_enabled():
        return [y]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [*leaves, bias])]
