"""Short test of a scan backend against float64, forward and backward.

A small image is compared with the reference. A long sequence is compared with a variant of the
recurrence whose backward pass is fast: a kernel with a race between steps can be correct on short
sequences and wrong on long ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcli.models.scan import reference
from robustcli.models.scan.base import CROSS, Backend, ScanSettings, of_image, of_sequence

SCANS = ("ss2d_scan", "selective_scan")
LONG = 2_100  # steps: above 2,048, and not a multiple of the tile of a kernel


def home(backend: Backend) -> torch.device:
    """The device to test `backend` on: the CPU if it supports the CPU, else CUDA."""
    cpu = torch.device("cpu")
    return cpu if backend.refuses(cpu, torch.float32, 3) is None else torch.device("cuda")


def worst_error(
    backend: Backend,
    seed: int = 0,
    device: torch.device | str | None = None,
    gradients: bool = True,
    scans: tuple[str, ...] = SCANS,
) -> float:
    """The largest error of `backend`, relative to the largest float64 value of the same tensor.

    The maximum over the outputs and the gradients, on random input with odd numbers of channels,
    pixels and steps; NaN if the backend computes a NaN. The long sequence is omitted if it would
    take seconds: for the reference, which has no kernel, and for interpreted kernels.

    Args:
        backend: The module of the backend.
        seed: Seed of the random input.
        device: Device for the computation; by default that of `home`.
        gradients: Whether to test the backward pass, too.
        scans: The functions to test, `ss2d_scan` and `selective_scan`.
    """
    target = device or home(backend)
    interpreted = getattr(backend, "interpreted", lambda: False)()
    errors: list[Tensor] = []
    for name in scans:
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            checks: list[tuple[Callable[..., Tensor], list[Tensor]]] = [
                (partial(_scan, reference, name), _arguments(name, generator))
            ]
            if backend is not reference and not interpreted:
                checks.append((_FLOAT64[name], _long_arguments(name, generator)))
            for exactly, arguments in checks:
                exact = _outputs(exactly, [t.double() for t in arguments])
                outputs = _outputs(partial(_scan, backend, name), [t.to(target) for t in arguments])
                errors += _errors(outputs, exact)
    return float(torch.stack(errors).max())


def _errors(outputs: list[Tensor], exact: list[Tensor]) -> list[Tensor]:
    return [(a.cpu() - b).abs().max() / b.abs().max() for a, b in zip(outputs, exact, strict=True)]


def _arguments(scan: str, generator: torch.Generator) -> list[Tensor]:
    """A small image, or a sequence of the same length: more steps than a tile of Triton."""
    return _random(scan, generator, batch=2, states=3, pixels=(9, 8))


def _long_arguments(scan: str, generator: torch.Generator) -> list[Tensor]:
    """A long sequence; for `ss2d_scan`, an image with a single row."""
    x, delta, *remaining = _random(scan, generator, batch=1, states=16, pixels=(1, LONG))
    return [x, delta - 1, *remaining]


def _random(
    scan: str, generator: torch.Generator, *, batch: int, states: int, pixels: tuple[int, int]
) -> list[Tensor]:
    """Random arguments of the function `scan`: x or u, delta, A, B, C, D and the bias."""
    channels, image = 19, scan == "ss2d_scan"
    steps = pixels if image else (pixels[0] * pixels[1],)
    paths, rows = ((batch, 4), 4 * channels) if image else ((batch,), channels)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    return [
        normal(batch, channels, *steps),
        normal(*paths, channels, *steps),
        -normal(rows, states).abs() - 0.1,
        normal(*paths, states, *steps),
        normal(*paths, states, *steps),
        normal(rows),
        normal(rows),
    ]


def _scan(backend: Backend, name: str, x: Tensor, *remaining: Tensor) -> Tensor:
    """The outputs (S, L, W) of `backend` for the arguments of the function `name`."""
    if name == "selective_scan":
        return backend.scan(of_sequence(x, *remaining), ScanSettings(softplus=True))[0]
    return backend.scan(of_image(x, *remaining), ScanSettings(True, CROSS, *x.shape[2:]))[0]


def _float64_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
                  bias: Tensor) -> Tensor:  # fmt: skip
    """The recurrence of `reference`; only the state is computed in a loop over the steps.

    In the reference, each step indexes complete tensors, whose gradients are then as large as the
    tensors at every step, so that the time of its backward pass grows with the square of L.
    """
    step = F.softplus(delta + bias[..., None])  # (B, D, L)
    decays = torch.exp(step[..., None] * A[..., None, :])  # (B, D, L, N)
    inputs = (step * u)[..., None] * B.mT[:, None]
    state, states = torch.zeros_like(inputs[:, :, 0]), []
    for decay, added in zip(decays.unbind(2), inputs.unbind(2), strict=True):
        state = torch.addcmul(added, decay, state)
        states.append(state)
    y = (torch.stack(states, 2) * C.mT[:, None]).sum(-1) + D[..., None] * u
    return y.mT


def _float64_line(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
                  bias: Tensor) -> Tensor:  # fmt: skip
    """`ss2d_scan` of an image with a single row: directions 0 and 1 forward, 2 and 3 reversed."""

    def turned(t: Tensor) -> Tensor:
        return torch.cat([t[:2], t[2:].flip(-1)])

    paths, channels = 4, x.shape[1]
    y = _float64_scan(
        turned(x[0, None, :, 0].expand(paths, -1, -1)), turned(delta[0, :, :, 0]),
        A.view(paths, channels, -1), turned(B[0, :, :, 0]), turned(C[0, :, :, 0]),
        D.view(paths, channels), bias.view(paths, channels),
    )  # fmt: skip
    return turned(y.mT).sum(0).mT[None]


_FLOAT64 = {"selective_scan": _float64_scan, "ss2d_scan": _float64_line}


def _outputs(scan: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    y = scan(*leaves)
    if not torch.is_grad_enabled():
        return [y]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]
