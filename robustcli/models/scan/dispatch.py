"""The one door to the scan: checks the arguments, chooses a backend, calls it."""

from __future__ import annotations

import os
from types import ModuleType

import torch
from torch import Tensor

from robustcli.core.errors import MachineError
from robustcli.core.names import find
from robustcli.models.scan import checks, cpu, reference

VARIABLE = "ROBUST_SCAN_BACKEND"
BACKENDS: dict[str, ModuleType] = {"reference": reference, "cpu": cpu}


def choose_backend(device: torch.device, dtype: torch.dtype) -> str:
    """The name of the backend that serves tensors on `device` of `dtype`.

    `ROBUST_SCAN_BACKEND` forces one; else the fastest that is available for the device serves.

    Raises:
        UsageError: The forced name is unknown.
        MachineError: The forced backend cannot run here.
    """
    forced = os.environ.get(VARIABLE)
    if forced:
        return _forced(forced)
    kernel_dtypes = (torch.float32, torch.bfloat16, torch.float16)
    if device.type == "cpu" and dtype in kernel_dtypes and cpu.available() is None:
        return "cpu"
    return "reference"


def _forced(wanted: str) -> str:
    name = find(wanted, BACKENDS, kind="scan backend", listing="robust doctor")
    reason = BACKENDS[name].available()
    if reason is not None:
        raise MachineError(
            f"`{VARIABLE}={wanted}` cannot be used.", reason, f"Unset {VARIABLE} to choose freely."
        )
    return name


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The scan of Mamba over a sequence, with mamba-ssm's own signature.

    Args:
        u: Input (B, D, L).
        delta: Step sizes before bias and softplus, (B, D, L).
        A: State decay (D, N), negative; kept in float32 for half inputs.
        B: Input matrix, (B, N, L) or grouped (B, G, N, L) with D divisible by G.
        C: Output matrix, shaped as `B`.
        D: Skip weight (D), or None.
        z: Gate (B, D, L): the output is multiplied by silu(z); or None.
        delta_bias: Added to delta, (D), or None.
        delta_softplus: Whether delta passes through softplus.
        return_last_state: Whether to return the state after the last step, (B, D, N) float32, too.

    Returns:
        y (B, D, L) in u's dtype, or (y, last state).

    Raises:
        UsageError: A shape, dtype or device does not fit; the message names the argument.
    """
    checks.check_selective_scan(u, delta, A, B, C, D, z, delta_bias)
    backend = BACKENDS[choose_backend(u.device, u.dtype)]
    result: Tensor | tuple[Tensor, Tensor] = backend.selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state
    )
    return result


def ss2d_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """The scan of VMamba: four directions over an image, summed at each pixel.

    Every argument is laid out by pixel; direction k walks the pixels in its own order
    (`orders.CROSS`), so that no cross-scanned copy of the input is ever made.

    Args:
        x: Input (B, D, H, W).
        delta: Step sizes before bias and softplus, (B, 4, D, H, W).
        A: State decay (4*D, N), row k*D + d; kept in float32 for half inputs.
        B: Input matrix (B, 4, N, H, W).
        C: Output matrix (B, 4, N, H, W).
        D: Skip weight (4*D), or None.
        delta_bias: Added to delta, (4*D), or None.
        delta_softplus: Whether delta passes through softplus.

    Returns:
        y (B, D, H, W): the sum over the four directions, in float32 for half inputs, because a sum
        rounded to float16 here is what makes the official fp16 path overflow (VMamba issue 138).

    Raises:
        UsageError: A shape, dtype or device does not fit; the message names the argument.
    """
    checks.check_ss2d_scan(x, delta, A, B, C, D, delta_bias)
    backend = BACKENDS[choose_backend(x.device, x.dtype)]
    y: Tensor = backend.ss2d_scan(x, delta, A, B, C, D, delta_bias, delta_softplus)
    return y
