"""Pyramid pooling as the tumour paper builds it: the pooled maps replace the feature map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZES = (1, 2, 3, 6)
SHARES = (8, 4, 2, 8)
"""Which part of the channels each size gives: an eighth, a quarter, a half, an eighth."""


class PyramidPooling(nn.Module):
    """Average pools of four sizes, each projected, enlarged and laid side by side.

    Unlike PSPNet's, the input is not part of the result, so nothing finer than 6 x 6 passes.
    Source: `mamba-tumor-seg` (2024); parameter names are its own.

    Args:
        channels: Channels in and out, a multiple of 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        convs = (nn.Conv2d(channels, channels // share, 1) for share in SHARES)
        self.conv_layers = nn.ModuleList(convs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        levels = (
            F.relu(conv(F.adaptive_avg_pool2d(x, size)))
            for size, conv in zip(SIZES, self.conv_layers, strict=True)
        )
        size = x.shape[2:]
        enlarged = [
            F.interpolate(level, size, mode="bilinear", align_corners=True) for level in levels
        ]
        return torch.cat(enlarged, 1)
