"""The scan as its definition reads: a loop over time in torch, differentiable, any float type.

Shapes: B batch, D channels, L steps, N state size, G groups of channels that share B and C,
K directions. Source: Mamba (arXiv 2312.00752) and VMamba (arXiv 2401.10166): with
dt = softplus(delta + delta_bias), per channel and state

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,    y_t = C_t . h_t + D u_t.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcli.models.scan.layout import CROSS, pixel_orders


def available() -> str | None:
    """None: this backend runs wherever torch does."""
    return None


def refuses(device: torch.device, dtype: torch.dtype, states: int) -> str | None:
    """None: it takes tensors on any device, of any float type."""
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
    out_dtype = u.dtype
    u, delta, A, B, C = (t.to(_compute_dtype(u)) for t in (u, delta, A, B, C))
    B, C = (_per_channel(t, u.shape[1]) for t in (B, C))  # (B, D, N, L)
    if delta_bias is not None:
        delta = delta + delta_bias.to(delta)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    y, state = _loop(u, delta, A, B, C)
    if D is not None:
        y = y + D.to(y)[:, None] * u
    if z is not None:
        y = y * F.silu(z.to(y))
    y = y.to(out_dtype)
    return (y, state) if return_last_state else y


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
    K, N, L = len(directions), A.shape[1], height * width
    order = pixel_orders(height, width, directions).to(x.device).long()  # (K, L)
    xs = torch.stack([x.flatten(2)[..., path] for path in order], 1)  # (B, K, D, L)
    index = order[None, :, None]  # (1, K, 1, L)
    delta, B, C = (
        t.flatten(3).gather(3, index.expand(batch, K, t.shape[2], L)) for t in (delta, B, C)
    )
    ys = selective_scan(
        xs.flatten(1, 2).to(_compute_dtype(x)),
        delta.flatten(1, 2),
        A,
        B.reshape(batch, K, N, L),
        C.reshape(batch, K, N, L),
        D,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
    )
    assert isinstance(ys, Tensor)
    back = order.argsort(1)[None, :, None].expand(batch, K, channels, L)
    merged = ys.view(batch, K, channels, L).gather(3, back).sum(1)  # (B, D, L)
    return merged.view(batch, channels, height, width)


def _compute_dtype(u: Tensor) -> torch.dtype:
    return torch.promote_types(u.dtype, torch.float32)


def _per_channel(t: Tensor, channels: int) -> Tensor:
    """`t` (B, N, L) or (B, G, N, L), repeated to one row per channel, (B, D, N, L)."""
    grouped = t if t.ndim == 4 else t[:, None]
    return grouped.repeat_interleave(channels // grouped.shape[1], 1)


def _loop(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence: y (B, D, L) and the last state (B, D, N)."""
    state = u.new_zeros(*u.shape[:2], A.shape[1])
    ys = []
    for t in range(u.shape[2]):
        step = dt[:, :, t, None]  # (B, D, 1)
        state = torch.exp(step * A) * state + step * B[..., t] * u[:, :, t, None]
        ys.append((state * C[..., t]).sum(-1))
    return torch.stack(ys, -1), state
