"""The scan through the kernel of an installed mamba-ssm build.

Its default wheels hold no Mamba-1 kernel, so this bridge serves only where somebody built one. It
is chosen when asked for, or on a CUDA device where Triton cannot be used. Its operator is not one
of torch's, so it promises neither `torch.compile` without a graph break nor `torch.export`.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcli.models.scan.layout import CROSS, pixel_orders
from robustcli.models.scan.reasons import KERNEL_DTYPES, missing

LOSS = "The scan runs as a loop over time in torch instead, which is many times slower."
_INTERFACE = "mamba_ssm.ops.selective_scan_interface"
_MOST_STATES = 256  # MAX_DSTATE in mamba-ssm's selective_scan.cpp
_BUILD = (
    "`MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation --force-reinstall --no-deps "
    "mamba-ssm` builds it (needs nvcc)."
)


def available() -> str | None:
    """None, or why this backend cannot run and how to get it."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return f"mamba-ssm is not installed. {_BUILD}"
    if importlib.util.find_spec("selective_scan_cuda") is None:
        return f"mamba-ssm is installed without its kernel `selective_scan_cuda`. {_BUILD}"
    if not torch.cuda.is_available():
        return f"no CUDA device: torch {torch.__version__} sees none."
    return missing("mamba_ssm", _INTERFACE)


def refuses(device: torch.device, dtype: torch.dtype, states: int) -> str | None:
    """None, or why this backend cannot take tensors on `device` of `dtype` with N `states`."""
    if device.type != "cuda":
        return f"It serves CUDA devices; the tensors are on {device}."
    if dtype not in KERNEL_DTYPES:
        return f"It computes in float32; the tensors are {dtype}."
    if states > _MOST_STATES:
        return f"It takes {_MOST_STATES} states at most; `A` has {states}."
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
    """See `robustcli.models.scan.selective_scan`. The gate is applied in float32, as elsewhere."""
    kernel: Any = importlib.import_module(_INTERFACE).selective_scan_fn
    delta, B, C = (t.to(u.dtype) for t in (delta, B, C))
    D, delta_bias = (None if t is None else t.float() for t in (D, delta_bias))
    y, last = kernel(u, delta, A.float(), B, C, D, None, delta_bias, delta_softplus, True)
    if z is not None:
        y = (y.float() * F.silu(z.float())).to(u.dtype)
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
    """See `robustcli.models.scan.ss2d_scan`: the pixels are copied into each direction's order.

    In float32, because the kernel's output has its input's dtype and the sum must not be rounded.
    """
    batch, channels, height, width = x.shape
    K, L = len(directions), height * width
    order = pixel_orders(height, width, directions).to(x.device).long()  # (K, L)
    xs = x.flatten(2).float()[:, :, order].transpose(1, 2)  # (B, K, D, L)
    delta, B, C = (_in_order(t.flatten(3).float(), order) for t in (delta, B, C))
    ys = selective_scan(
        xs.reshape(batch, K * channels, L), delta.reshape(batch, K * channels, L), A, B, C, D,
        delta_bias=delta_bias, delta_softplus=delta_softplus,
    )  # fmt: skip
    assert isinstance(ys, Tensor)
    merged = _in_order(ys.view(batch, K, channels, L), order.argsort(1)).sum(1)
    return merged.view(batch, channels, height, width)


def _in_order(t: Tensor, order: Tensor) -> Tensor:
    """`t` (B, K, X, L) with the last axis of direction k in the order `order[k]`."""
    return t.gather(3, order[None, :, None].expand(t.shape))
