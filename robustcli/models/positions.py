"""Vim's position embedding at another input size.

The class token sits in the middle of the sequence and so does its entry here. The release's own
helper takes entry 0 for it and shifts the grid by one; this one does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcli.core.errors import UsageError


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """`positions` (1, M + 1, C) of a square grid for another one, the middle entry kept as it is.

    Bicubic, as DeiT and Vim resize theirs.

    Args:
        positions: The position embedding.
        grid: Patches down and across in the new one.

    Raises:
        UsageError: The old grid is not square.
    """
    M = positions.shape[1] - 1
    side, middle = math.isqrt(M), M // 2
    if side * side != M:
        raise UsageError(
            f"A position embedding of {M} patches cannot be resized.",
            "Its patches form no square grid, so their places are unknown.",
        )
    own = positions[:, middle : middle + 1]
    patches = torch.cat((positions[:, :middle], positions[:, middle + 1 :]), 1)
    image = patches.transpose(1, 2).unflatten(2, (side, side))  # (1, C, side, side)
    resized = F.interpolate(image, grid, mode="bicubic", align_corners=False)
    tokens = resized.flatten(2).transpose(1, 2)
    new_middle = tokens.shape[1] // 2
    return torch.cat((tokens[:, :new_middle], own, tokens[:, new_middle:]), 1)


def fit_positions(state: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """`state` of a Vim with its position embedding resized where it has another number of patches.

    Args:
        state: The weights.
        grid: Patches down and across in the network that they go to (`VimConfig.grid`).

    Raises:
        UsageError: The old grid is not square.
    """
    positions = state.get("pos_embed")
    if positions is None or positions.shape[1] == math.prod(grid) + 1:
        return dict(state)
    return {**state, "pos_embed": resize_positions(positions, grid)}
