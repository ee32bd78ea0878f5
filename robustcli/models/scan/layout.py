"""How the kernels read the scan's arguments: pixel orders, memory layout, gradients asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The orders in which the directions of a two-dimensional scan visit the pixels.


CROSS = ("row", "column", "row-reversed", "column-reversed")
"""VMamba's four directions, in the order of its parameters (`x_proj_weight[k]`)."""


CODES = {"row": 0, "column": 1, "row-reversed": 2, "column-reversed": 3}
"""Bit 1: column by column; bit 2: from the end."""

MOST = 16  # directions whose codes fit in the number that kernels are given


def packed(directions: tuple[str, ...]) -> int:
    """The codes of the directions in one number, two bits each, the first one lowest."""
    return sum(CODES[direction] << 2 * k for k, direction in enumerate(directions))


def pixel_orders(height: int, width: int, directions: tuple[str, ...] = CROSS) -> Tensor:
    """The row-major index of the pixel that direction k visits at step t, (K, L) int32, L = H*W.

    Args:
        height: Rows, at least 1.
        width: Columns, at least 1.
        directions: One of `row`, `column`, `row-reversed`, `column-reversed` per direction.
    """
    row = torch.arange(height * width, dtype=torch.int32)
    column = row.view(height, width).t().reshape(-1)
    paths = {
        "row": row,
        "column": column,
        "row-reversed": row.flip(0),
        "column-reversed": column.flip(0),
    }
    return torch.stack([paths[direction] for direction in directions])  # (K, L)


# Which gradients of a scan somebody asks for, and what that takes.
#
# Seven truth values in the order of `layout.Laid`: x, delta, A, B, C, D and bias.


Wanted = Sequence[bool]


def needs_states(wanted: Wanted) -> bool:
    """Whether the backward pass recomputes the states: only x, B and D do without."""
    _, delta, A, _, C, _, bias = wanted
    return delta or A or C or bias


def needs_slopes(wanted: Wanted) -> bool:
    """Whether it walks the slopes by the states back: only C and D do without."""
    x, delta, A, B, _, _, bias = wanted
    return x or delta or A or B or bias


def slopes_or_zeros(
    x: Tensor, A: Tensor, dy: Tensor | None, dstate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The slopes of the loss by y and by the last state (K, S, N, D), zeros where none came.

    Autograd would fill in one more, by the states kept for it, which is as large as they are.
    """
    K, N, D = A.shape
    if dy is None:
        dy = torch.zeros_like(x, dtype=torch.float32)
    return dy, A.new_zeros(K, x.shape[0], N, D) if dstate is None else dstate


def spread(found: Iterable[Tensor], wanted: Wanted) -> list[Tensor | None]:
    """The gradients `found`, of those wanted only, each in its place among seven."""
    rest = iter(found)
    return [next(rest) if asked else None for asked in wanted]


# The arguments of the scan laid out as the kernels of every device read them.
#
# Shapes: S sequences (the batch), L steps, K groups or directions, D channels of each, N state
# size, W channels of x: K*D where groups share no channel, D where all directions read the same
# ones.


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
