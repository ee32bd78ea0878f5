"""The scan on the CPU through numba, forward and backward.

The kernels add a type to numba and write LLVM code for it through llvmlite. Both are no stable
interface: a release may change them, and then this backend is off, with the reason.
It also serves Apple GPUs (MPS), for which there is no kernel: the arguments are copied to the CPU
and the result back, which takes far less than a loop over time on the GPU. Networks with and
without a scan so compute on the same device.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from robustcli.models.scan import cpu_ops, layout
from robustcli.models.scan.cpu_ops import describe
from robustcli.models.scan.layout import CROSS, needs_states, pixel_orders
from robustcli.models.scan.reasons import KERNEL_DTYPES, missing

__all__ = ["LOSS", "available", "describe", "refuses", "remedy", "selective_scan", "ss2d_scan"]

TESTED = ("0.60", "0.68.1")  # the lowest and the highest numba that the tests ran with
_DEVICES = ("cpu", "mps")  # of the tensors
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
    if device.type not in _DEVICES:
        return f"It serves the CPU and MPS; the tensors are on {device}."
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
    home = u.device
    u, delta, A, B, C, D, delta_bias = _on_cpu(u, delta, A, B, C, D, delta_bias)
    laid = layout.of_sequence(u, delta, A, B, C, D, delta_bias)
    B, C = (t.permute(1, 0, 3, 2) for t in (laid.B, laid.C))
    by_time = layout.Laid(u, delta, laid.A, B, C, laid.D, laid.bias)
    y, state, _ = cpu_ops.scan_cpu_sequence(*_ready(by_time), delta_softplus, _keeps(by_time))
    y = layout.gated(y.to(home), z, u.dtype)
    return (y, layout.last_state(state).to(home)) if return_last_state else y


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
    home, (height, width) = x.device, x.shape[2:]
    x, delta, A, B, C, D, delta_bias = _on_cpu(x, delta, A, B, C, D, delta_bias)
    laid = layout.of_image(x, delta, A, B, C, D, delta_bias)
    order = pixel_orders(height, width, directions)
    offset = torch.zeros(len(directions), dtype=torch.int32)
    y, _, _ = cpu_ops.scan_cpu(*_ready(laid), order, offset, delta_softplus, _keeps(laid))
    return layout.to_image(y.to(home), height, width)


def _on_cpu(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The arguments on the CPU; those that are there already stay as they are."""
    D, bias = (None if t is None else t.cpu() for t in (D, bias))
    return x.cpu(), delta.cpu(), A.cpu(), B.cpu(), C.cpu(), D, bias


def _ready(laid: layout.Laid) -> list[Tensor]:
    return [t.to(torch.float32).contiguous() for t in laid]


def _keeps(laid: layout.Laid) -> bool:
    """Whether the backward pass will want the states, of which the forward pass keeps some."""
    return torch.is_grad_enabled() and needs_states([t.requires_grad for t in laid])
