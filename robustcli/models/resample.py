"""Where VMamba changes resolution: the stems and the downsamplings, on channels-last maps.

Source: the code release of VMamba (arXiv 2401.10166); written anew from the published facts.
Positions inside each Sequential are the release's, because parameter names hold them.

Shapes: B batch, H and W of the current stage, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Permute(nn.Module):
    """Reorders dimensions inside a Sequential; holds no parameters."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """`x` with its dimensions in `order`."""
        return x.permute(self.order)


def _to_last() -> Permute:
    return Permute(0, 2, 3, 1)


def _to_first() -> Permute:
    return Permute(0, 3, 1, 2)


def stem_v1(dim: int) -> nn.Sequential:
    """One 4x4 patch convolution; (B, 3, H, W) to (B, H/4, W/4, C)."""
    return nn.Sequential(nn.Conv2d(3, dim, 4, 4), _to_last(), nn.LayerNorm(dim))


def stem_v2(dim: int, strides: tuple[int, int]) -> nn.Sequential:
    """Two overlapping 3x3 convolutions; (B, 3, H, W) to (B, H/s, W/s, C), s their product."""
    return nn.Sequential(
        nn.Conv2d(3, dim // 2, 3, strides[0], 1),
        _to_last(),
        nn.LayerNorm(dim // 2),
        _to_first(),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, strides[1], 1),
        _to_last(),
        nn.LayerNorm(dim),
    )


def downsample_v3(dim: int) -> nn.Sequential:
    """A 3x3 convolution with stride 2; (B, H, W, C) to (B, H/2, W/2, 2C)."""
    conv = nn.Conv2d(dim, 2 * dim, 3, 2, 1)
    return nn.Sequential(_to_first(), conv, _to_last(), nn.LayerNorm(2 * dim))


class PatchMerging(nn.Module):
    """Downsampling of the v0 releases: 2x2 pixels side by side, then a projection."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, ceil(H/2), ceil(W/2), 2C); odd sizes are zero-padded."""
        H, W = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(corners, -1)))
        return merged
