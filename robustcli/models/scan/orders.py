"""The orders in which the directions of a two-dimensional scan visit the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

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
