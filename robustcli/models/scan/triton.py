"""The scan on the GPU through Triton (CUDA; ROCm where torch brings Triton for it).

Under Triton's interpreter (`TRITON_INTERPRET=1`) the same kernels run on CPU tensors, slowly: that
is how they are tested where there is no GPU.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcli.core.errors import UsageError
from robustcli.models.scan import triton_ops
from robustcli.models.scan.orders import CROSS, packed
from robustcli.models.scan.reasons import KERNEL_DTYPES, missing

_MOST = 2**31 - 1  # kernels count in 32 bits inside one sequence, in 64 beyond
LOSS = "The scan runs as a loop over time in torch instead, which is many times slower."


def available() -> str | None:
    """None, or why this backend cannot run."""
    reason = missing("triton", "robustcli.models.scan.triton_backward")
    if reason is None and not (_interpreted() or torch.cuda.is_available()):
        return f"no CUDA device: torch {torch.__version__} sees none."
    return reason


def refuses(device: torch.device, dtype: torch.dtype, states: int) -> str | None:
    """None, or why this backend cannot take tensors on `device` of `dtype`."""
    if device.type != "cuda" and not _interpreted():
        return f"It serves CUDA devices; the tensors are on {device}."
    if dtype not in KERNEL_DTYPES:
        return f"It computes in float32; the tensors are {dtype}."
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


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
    """See `robustcli.models.scan.selective_scan`. The gate is a torch operation of its own."""
    batch, channels, length = u.shape
    B, C = (t[:, None] if t.ndim == 3 else t for t in (B, C))
    G, N = B.shape[1], A.shape[1]
    y, state = _scan(
        u.transpose(1, 2),
        delta.reshape(batch, G, channels // G, length).permute(1, 0, 3, 2),
        A.reshape(G, -1, N),
        B.permute(1, 0, 3, 2),
        C.permute(1, 0, 3, 2),
        _rows(D, G, A),
        _rows(delta_bias, G, A),
        (1, length, 0, channels // G, delta_softplus),
    )
    y = y.transpose(1, 2)
    if z is not None:
        y = y * F.silu(z.float())
    y = y.to(u.dtype)
    last = state.permute(1, 0, 3, 2).reshape(batch, channels, N)
    return (y, last) if return_last_state else y


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
    batch, channels, height, width = x.shape
    K, N = len(directions), A.shape[1]
    y, _ = _scan(
        x.permute(0, 2, 3, 1).reshape(batch, height * width, channels),
        _by_step(delta),
        A.reshape(K, channels, N),
        _by_step(B),
        _by_step(C),
        _rows(D, K, A),
        _rows(delta_bias, K, A),
        (height, width, packed(directions), 0, delta_softplus),
    )
    return y.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _by_step(t: Tensor) -> Tensor:
    """`t` (B, K, D, H, W) as (K, B, H*W, D)."""
    return t.permute(1, 0, 3, 4, 2).flatten(2, 3)


def _rows(values: Tensor | None, K: int, A: Tensor) -> Tensor:
    """`values` (K*D) as (K, D), zeros for None."""
    return (A.new_zeros(A.shape[0]) if values is None else values).reshape(K, -1)


def _scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor,
          settings: tuple[int, int, int, int, bool]) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Half inputs are read as they are; A, D and the bias become float32, as the state is."""
    if x.shape[1] * x.shape[2] > _MOST:
        raise UsageError(
            f"The input's {x.shape[1]} steps of {x.shape[2]} channels are too many.",
            f"The Triton kernels count to {_MOST} within one sequence or image.",
            "Cut the input, or force another scan backend.",
        )
    x, delta, B, C = (
        (t if t.dtype in KERNEL_DTYPES else t.float()).contiguous() for t in (x, delta, B, C)
    )
    A, D, bias = (t.float().contiguous() for t in (A.transpose(1, 2), D, bias))
    tensors = (x, delta, A, B, C, D, bias)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    y, state, _ = triton_ops.scan_triton(*tensors, *settings, keep)
    return y, state
