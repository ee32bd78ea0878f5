"""The scan on the GPU through Triton (CUDA; ROCm where torch brings Triton for it).

Under Triton's interpreter (`TRITON_INTERPRET=1`) the same kernels run on CPU tensors, slowly: that
is how they are tested where there is no GPU.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from robustcli.core.errors import UsageError
from robustcli.models.scan import layout, triton_ops
from robustcli.models.scan.layout import CROSS, needs_states, packed
from robustcli.models.scan.reasons import KERNEL_DTYPES, missing

_MOST = 2**31 - 1  # kernels count in 32 bits inside one sequence, in 64 beyond
LOSS = "The scan runs as a loop over time in torch instead, which is many times slower."


def available() -> str | None:
    """None, or why this backend cannot run."""
    reason = missing("triton", "robustcli.models.scan.triton_kernels")
    if reason is None and not (interpreted() or torch.cuda.is_available()):
        return f"no CUDA device: torch {torch.__version__} sees none."
    return reason


def refuses(device: torch.device, dtype: torch.dtype, states: int) -> str | None:
    """None, or why this backend cannot take tensors on `device` of `dtype`."""
    if device.type != "cuda" and not interpreted():
        return f"It serves CUDA devices; the tensors are on {device}."
    if dtype not in KERNEL_DTYPES:
        return f"It computes in float32; the tensors are {dtype}."
    return None


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, step by step in Python."""
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
    laid = layout.of_sequence(u, delta, A, B, C, D, delta_bias)
    channels = laid.delta.shape[3]  # of a group
    y, state = _scan(laid, (1, u.shape[2], 0, channels, delta_softplus))
    y = layout.gated(y.mT, z, u.dtype)
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
    y, _ = _scan(laid, (height, width, packed(directions), 0, delta_softplus))
    return layout.to_image(y, height, width)


def _scan(laid: layout.Laid, settings: tuple[int, int, int, int, bool]) -> tuple[Tensor, Tensor]:
    """Half inputs are read as they are; A, D and the bias become float32, as the state is."""
    _, steps, channels = laid.x.shape
    if steps * channels > _MOST:
        raise UsageError(
            f"The input's {steps} steps of {channels} channels are too many.",
            f"The Triton kernels count to {_MOST} within one sequence or image.",
            "Cut the input, or force another scan backend.",
        )
    halves = {"x", "delta", "B", "C"}
    tensors = [
        (t if name in halves and t.dtype in KERNEL_DTYPES else t.float()).contiguous()
        for name, t in laid._asdict().items()
    ]
    keep = torch.is_grad_enabled() and needs_states([t.requires_grad for t in tensors])
    y, state, _ = triton_ops.scan_triton(*tensors, *settings, keep)
    return y, state
