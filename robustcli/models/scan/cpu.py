"""The scan on the CPU through numba, forward and backward.

The kernels add a type to numba and write LLVM code for it through llvmlite. Both are no stable
interface: a release may change them, and then this backend is off, with the reason.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from robustcli.models.scan import cpu_ops, layout
from robustcli.models.scan.cpu_team import describe
from robustcli.models.scan.orders import CROSS, pixel_orders
from robustcli.models.scan.reasons import KERNEL_DTYPES, missing
from robustcli.models.scan.wanted import needs_states

__all__ = ["LOSS", "available", "describe", "refuses", "remedy", "selective_scan", "ss2d_scan"]

TESTED = ("0.60", "0.68.1")  # the lowest and the highest numba that the tests ran with
LOSS = "The scan runs as a loop over time in torch instead, 20 to 100 times slower."


def available() -> str | None:
    """None, or why this backend cannot run."""
    return missing("numba", "robustcli.models.scan.cpu_kernels", remedy())


def remedy() -> str:
    """What to do where the kernels fail: which versions are installed, and which are tested."""
    lowest, highest = TESTED
    return (
        f"Installed are numba {_installed('numba')} and llvmlite {_installed('llvmlite')}; the "
        f"kernels are tested with numba {lowest} to {highest}: "
        f"`pip install 'numba>={lowest},<={highest}'`."
    )


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(version unknown)"


def refuses(device: torch.device, dtype: torch.dtype, states: int) -> str | None:
    """None, or why this backend cannot take tensors on `device` of `dtype`."""
    if device.type != "cpu":
        return f"It serves the CPU; the tensors are on {device}."
    if dtype not in KERNEL_DTYPES:
        return f"It computes in float32; the tensors are {dtype}."
    return None


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
    """See `robustcli.models.scan.selective_scan`."""
    laid = layout.of_sequence(u, delta, A, B, C, D, delta_bias)
    by_time = laid._replace(
        x=u, delta=delta, B=laid.B.permute(1, 0, 3, 2), C=laid.C.permute(1, 0, 3, 2)
    )
    y, state, _ = cpu_ops.scan_cpu_sequence(*_ready(by_time), delta_softplus, _keeps(by_time))
    y = layout.gated(y, z, u.dtype)
    return (y, layout.last_state(state)) if return_last_state else y


def ss2d_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    *,
    directions: tuple[str, ...] = CROSS,
) -> Tensor:
    """See `robustcli.models.scan.ss2d_scan`."""
    height, width = x.shape[2:]
    laid = layout.of_image(x, delta, A, B, C, D, delta_bias)
    order = pixel_orders(height, width, directions)
    offset = torch.zeros(len(directions), dtype=torch.int32)
    y, _, _ = cpu_ops.scan_cpu(*_ready(laid), order, offset, delta_softplus, _keeps(laid))
    return layout.to_image(y, height, width)


def _ready(laid: layout.Laid) -> list[Tensor]:
    return [t.to(torch.float32).contiguous() for t in laid]


def _keeps(laid: layout.Laid) -> bool:
    """Whether the backward pass will want the states, of which the forward pass keeps some."""
    return torch.is_grad_enabled() and needs_states([t.requires_grad for t in laid])
