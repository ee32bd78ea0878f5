"""Backend that calls the kernel of an installed mamba-ssm build.

The default wheels of mamba-ssm do not contain the Mamba-1 kernel, so this backend is available only
if mamba-ssm was built with it. It is used if it is forced, or on a CUDA device if Triton cannot be
used. Its operator is not registered in torch, so `torch.compile` without a graph break and
`torch.export` are not guaranteed.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from robustcli.models.scan.base import (
    KERNEL_DTYPES,
    ScanInputs,
    ScanSettings,
    in_order,
    missing,
    pixel_orders,
)

_INTERFACE = "mamba_ssm.ops.selective_scan_interface"
_MOST_STATES = 256  # MAX_DSTATE in mamba-ssm's selective_scan.cpp
_BUILD = (
    "`MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation --force-reinstall --no-deps "
    "mamba-ssm` builds it (needs nvcc)."
)


def available() -> str | None:
    """None, or why this backend cannot run and how to install it."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return f"mamba-ssm is not installed. {_BUILD}"
    if importlib.util.find_spec("selective_scan_cuda") is None:
        return f"mamba-ssm is installed without its kernel `selective_scan_cuda`. {_BUILD}"
    if not torch.cuda.is_available():
        return f"no CUDA device: torch {torch.__version__} finds none."
    return missing("mamba_ssm", _INTERFACE)


def refuses(device: torch.device, dtype: torch.dtype, states: int) -> str | None:
    """None, or why `device`, `dtype` or the state size `states` is not supported."""
    if device.type != "cuda":
        return f"It supports CUDA devices; the tensors are on {device}."
    if dtype not in KERNEL_DTYPES:
        return f"It computes in float32; the tensors are {dtype}."
    if states > _MOST_STATES:
        return f"It supports at most {_MOST_STATES} states; `A` has {states}."
    return None


def remedy() -> str:
    """How to rebuild the kernel."""
    return _BUILD


def scan(arguments: ScanInputs, settings: ScanSettings) -> tuple[Tensor, Tensor]:
    """See `base.Backend`. For images, copies the pixels into the order of each direction.

    Images are scanned in float32, because the output of the kernel has the dtype of its input and
    the sum over the directions must not be rounded.
    """
    x, delta, A, B, C, D, bias = arguments
    K, S, L, channels = delta.shape
    u = x.mT  # (S, W, L)
    dtype = torch.float32 if settings.directions else u.dtype
    delta, B, C = (t.to(dtype).permute(1, 0, 3, 2) for t in (delta, B, C))
    order = None
    if settings.directions:
        order = pixel_orders(settings.height, settings.width, settings.directions)  # (K, L)
        order = order.to(u.device).long()
        u = u.float()[:, :, order].transpose(1, 2).reshape(S, K * channels, L)
        delta, B, C = (in_order(t, order) for t in (delta, B, C))
    kernel: Any = importlib.import_module(_INTERFACE).selective_scan_fn
    y, state = kernel(
        u, delta.reshape(S, K * channels, L), A.float().mT.reshape(K * channels, -1), B, C,
        D.float().flatten(), None, bias.float().flatten(), settings.softplus, True,
    )  # fmt: skip
    if order is not None:
        y = in_order(y.view(S, K, channels, L), order.argsort(1)).sum(1)
    return y.mT, state.unflatten(1, (K, channels)).permute(1, 0, 3, 2)
