"""The arguments of the scan laid out as the kernels of every device read them.

Shapes: S sequences (the batch), L steps, K groups or directions, D channels of each, N state size,
W channels of x: K*D where groups share no channel, D where all directions read the same ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Laid(NamedTuple):
    """What a scan reads, channels fastest, in the order of the operators' arguments."""

    x: Tensor  # (S, L, W)
    delta: Tensor  # (K, S, L, D)
    A: Tensor  # (K, N, D)
    B: Tensor  # (K, S, L, N)
    C: Tensor  # (K, S, L, N)
    D: Tensor  # (K, D)
    bias: Tensor  # (K, D)


def of_image(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None
) -> Laid:
    """Arguments of `ss2d_scan`; steps are pixels, row by row."""
    K, N = delta.shape[1], A.shape[1]
    by_pixel = x.permute(0, 2, 3, 1).flatten(1, 2)
    parameters = A.reshape(K, -1, N).transpose(1, 2), _rows(D, K, A), _rows(bias, K, A)
    delta, B, C = (t.permute(1, 0, 3, 4, 2).flatten(2, 3) for t in (delta, B, C))
    return Laid(by_pixel, delta, parameters[0], B, C, *parameters[1:])


def to_image(y: Tensor, height: int, width: int) -> Tensor:
    """`y` (S, L, W) as (S, W, H, W)."""
    return y.reshape(y.shape[0], height, width, -1).permute(0, 3, 1, 2)


def of_sequence(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None
) -> Laid:
    """Arguments of `selective_scan`, B and C with a group axis or without."""
    B, C = (t[:, None] if t.ndim == 3 else t for t in (B, C))
    G, N = B.shape[1], A.shape[1]
    return Laid(
        u.transpose(1, 2),
        delta.unflatten(1, (G, -1)).permute(1, 0, 3, 2),
        A.reshape(G, -1, N).transpose(1, 2),
        B.permute(1, 0, 3, 2),
        C.permute(1, 0, 3, 2),
        _rows(D, G, A),
        _rows(bias, G, A),
    )


def gated(y: Tensor, z: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`y` times silu(z), computed in float32, in `dtype`."""
    return (y if z is None else y * F.silu(z.float())).to(dtype)


def last_state(state: Tensor) -> Tensor:
    """`state` (K, S, N, D) as (S, K*D, N)."""
    return state.permute(1, 0, 3, 2).flatten(1, 2)


def _rows(values: Tensor | None, K: int, A: Tensor) -> Tensor:
    """`values` (K*D) as (K, D), zeros for None."""
    return (A.new_zeros(A.shape[0]) if values is None else values).reshape(K, -1)
