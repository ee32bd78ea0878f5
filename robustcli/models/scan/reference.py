"""Reference backend: the definition of the scan as a loop over time in torch.

Differentiable, for any float dtype. Source: Mamba (arXiv 2312.00752) and VMamba (arXiv 2401.10166):
with dt = softplus(delta + bias), per channel and state

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,    y_t = C_t . h_t + D u_t.

Shapes: S sequences, L steps, K groups or directions, D channels per group or direction, N state
size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcli.models.scan.base import ScanInputs, ScanSettings, in_order, pixel_orders


def available() -> str | None:
    """None: this backend runs on every machine with torch."""
    return None


def refuses(device: torch.device, dtype: torch.dtype, states: int) -> str | None:
    """None: every device and float dtype is supported."""
    return None


def remedy() -> str:
    """Empty: the backend has no kernels."""
    return ""


def scan(arguments: ScanInputs, settings: ScanSettings) -> tuple[Tensor, Tensor]:
    """See `base.Backend`. Computes in float32, or in float64 if x is float64."""
    x, delta, A, B, C, D, bias = (
        t.to(torch.promote_types(arguments.x.dtype, torch.float32)) for t in arguments
    )
    K, S, L, channels = delta.shape
    u = x.transpose(1, 2)  # (S, W, L)
    delta, B, C = (t.permute(1, 0, 3, 2) for t in (delta, B, C))  # (S, K, D or N, L)
    order = None
    if settings.directions:
        order = pixel_orders(settings.height, settings.width, settings.directions)  # (K, L)
        order = order.to(x.device).long()
        u = torch.stack([u[..., path] for path in order], 1).flatten(1, 2)  # (S, K*D, L)
        delta, B, C = (in_order(t, order) for t in (delta, B, C))
    delta = delta.flatten(1, 2) + bias.flatten()[:, None]  # (S, K*D, L)
    dt = F.softplus(delta) if settings.softplus else delta
    B, C = (t.repeat_interleave(channels, 1) for t in (B, C))  # (S, K*D, N, L)
    y, state = _loop(u, dt, A.transpose(1, 2).flatten(0, 1), B, C)
    y = y + D.flatten()[:, None] * u
    if order is not None:
        y = in_order(y.view(S, K, channels, L), order.argsort(1)).sum(1)  # (S, D, L)
    return y.transpose(1, 2), state.unflatten(1, (K, channels)).permute(1, 0, 3, 2)


def _loop(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence for u and dt (S, K*D, L), A (K*D, N), B and C (S, K*D, N, L).

    Returns y (S, K*D, L) and the last state (S, K*D, N).
    """
    state = u.new_zeros(*u.shape[:2], A.shape[1])
    ys = []
    for t in range(u.shape[2]):
        step = dt[:, :, t, None]  # (S, K*D, 1)
        state = torch.exp(step * A) * state + step * B[..., t] * u[:, :, t, None]
        ys.append((state * C[..., t]).sum(-1))
    return torch.stack(ys, -1), state
