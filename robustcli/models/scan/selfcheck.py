"""A short check of a scan backend against float64, forward and backward.

A small image is compared with the reference, and one long sequence with the recurrence written so
that its backward pass is fast: a kernel whose steps overlap can be right on short sequences and
wrong on long ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcli.models.scan import reference

SCANS = ("ss2d_scan", "selective_scan")
LONG = 2_100  # steps: above 2,048, and no multiple of a kernel's tile


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
    """The largest difference of the scans of `backend` from float64, relative to its range.

    Over the outputs and the gradients, on random input with odd numbers of channels, pixels and
    steps; NaN if the backend computes one. The long sequence is left out where it would take
    seconds: of the reference, which has no kernel, and of kernels that are interpreted.

    Args:
        backend: The backend's module.
        seed: Of the random input.
        device: Where the backend computes; by default its home.
        gradients: Whether the backward pass is checked, too.
        scans: The functions that are checked on short input; the long sequence always is.
    """
    generator, place = torch.Generator().manual_seed(seed), device or home(backend)
    errors = []
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        for name in scans:
            short = _arguments(name, generator)
            exact = _outputs(partial(_scan, reference, name), [t.double() for t in short])
            found = _outputs(partial(_scan, backend, name), [t.to(place) for t in short])
            errors += _errors(found, exact)
        if backend is not reference and not getattr(backend, "interpreted", lambda: False)():
            sequence = _long_arguments(generator)
            exact = _outputs(_float64_scan, [t.double() for t in sequence])
            scan = partial(_scan, backend, "selective_scan")
            errors += _errors(_outputs(scan, [t.to(place) for t in sequence]), exact)
    return float(torch.stack(errors).max())


def _errors(found: list[Tensor], exact: list[Tensor]) -> list[Tensor]:
    return [(a.cpu() - b).abs().max() / b.abs().max() for a, b in zip(found, exact, strict=True)]


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


def _long_arguments(generator: torch.Generator) -> list[Tensor]:
    channels, states = 19, 16

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    return [
        normal(1, channels, LONG),
        normal(1, channels, LONG) - 1,
        -normal(channels, states).abs() - 0.1,
        normal(1, states, LONG),
        normal(1, states, LONG),
        normal(channels),
        normal(channels),
    ]


def _scan(backend: ModuleType, name: str, *arguments: Tensor) -> Tensor:
    *leaves, bias = arguments
    y: Tensor = getattr(backend, name)(*leaves, delta_bias=bias, delta_softplus=True)
    return y


def _float64_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
                  bias: Tensor) -> Tensor:  # fmt: skip
    """The recurrence of `reference`, of which only the state is computed step by step.

    A tensor that is indexed step by step gets a gradient of its own size at every step, so the
    reference takes time with the square of the length.
    """
    step = F.softplus(delta + bias[:, None])  # (B, D, L)
    decays = torch.exp(step[..., None] * A[:, None])  # (B, D, L, N)
    inputs = (step * u)[..., None] * B.mT[:, None]
    state, states = torch.zeros_like(inputs[:, :, 0]), []
    for decay, added in zip(decays.unbind(2), inputs.unbind(2), strict=True):
        state = torch.addcmul(added, decay, state)
        states.append(state)
    return (torch.stack(states, 2) * C.mT[:, None]).sum(-1) + D[:, None] * u


def _outputs(scan: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    y = scan(*leaves)
    if not torch.is_grad_enabled():
        return [y]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]
