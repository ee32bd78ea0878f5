"""The attention bridge over the skip connections of UltraLight VM-UNet.

Source: Ruan et al., "MALUNet" (arXiv 2211.01784), as UltraLight VM-UNet uses it; parameter names
are theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SpatialAttention(nn.Module):
    """One convolution, shared by all maps, over each map's mean and maximum across channels."""

    def __init__(self) -> None:
        super().__init__()
        self.shared_conv2d = nn.Sequential(nn.Conv2d(2, 1, 7, padding=9, dilation=3), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to weights (B, 1, H, W) in 0..1."""
        summary = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
        weights: Tensor = self.shared_conv2d(summary)
        return weights


class ChannelAttention(nn.Module):
    """Weights per channel of every map from the averages of all channels of all maps."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.get_all_att = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.widths = tuple(widths)
        for i, width in enumerate(widths, 1):
            self.add_module(f"att{i}", nn.Linear(sum(widths), width))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i) to weights (B, C_i, 1, 1) in 0..1."""
        means = torch.cat([x.mean((2, 3)) for x in maps], 1)  # (B, sum C)
        context = self.get_all_att(means[:, None])[:, 0]
        return [
            torch.sigmoid(self.get_submodule(f"att{i}")(context))[..., None, None]
            for i in range(1, len(maps) + 1)
        ]


class SkipBridge(nn.Module):
    """Weighs the skip maps by place, then by channel, keeping their shapes.

    Args:
        widths: Channels of the maps, in the order in which they are passed.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.catt = ChannelAttention(widths)
        self.satt = SpatialAttention()

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The weighed maps."""
        placed = [self.satt(x) * x for x in maps]
        both = [a + x for a, x in zip(placed, maps, strict=True)]
        weights = self.catt(both)
        return [g * b + a for g, b, a in zip(weights, both, placed, strict=True)]
