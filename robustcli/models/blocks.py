"""Blocks that several networks share: residual convolutions, pyramid pooling, stochastic depth."""

from __future__ import annotations

from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The convolution blocks of nnU-Net's residual networks, shared by both U-Mambas. Source:
# dynamic-network-architectures (MIC-DKFZ), whose parameter names these keep; written anew from the
# published facts. That package registers each convolution and norm twice; here once
# (`robustcli.models.umamba` converts).


def activated(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.01, in place: what a norm returned is needed by nothing else."""
    return F.leaky_relu(x, 0.01, inplace=True)


class ConvNorm(nn.Module):
    """A convolution and its instance norm, which keeps no running statistics."""

    def __init__(
        self, c_in: int, c_out: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1),
        *, bias: bool = True, affine: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = conv(c_in, c_out, kernel, stride, bias=bias)
        self.norm = nn.InstanceNorm2d(c_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        normed: Tensor = self.norm(self.conv(x))
        return normed


class BasicBlockD(nn.Module):
    """Two convolutions and a shortcut, (B, C, H, W) to (B, C', H', W').

    The shortcut is the input itself where its shape is kept; else average pooling, where the stride
    asks for it, and a 1x1 convolution without bias, with its norm.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1), *, affine: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = ConvNorm(c_in, c_out, kernel, stride, affine=affine)
        self.conv2 = ConvNorm(c_out, c_out, kernel, affine=affine)
        parts: list[nn.Module] = [] if stride == (1, 1) else [nn.AvgPool2d(stride, stride)]
        if c_in != c_out:
            parts.append(ConvNorm(c_in, c_out, (1, 1), bias=False, affine=affine))
        self.skip = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return activated(self.conv2(activated(self.conv1(x))) + self.skip(x))


class BasicResBlock(nn.Module):
    """U-Mamba's own block: as BasicBlockD, but with a bare 1x1 convolution as shortcut, always."""

    def __init__(
        self, c_in: int, c_out: int, kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1),
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = conv(c_in, c_out, kernel, stride)
        self.norm1 = nn.InstanceNorm2d(c_out, affine=True)
        self.conv2 = conv(c_out, c_out, kernel)
        self.norm2 = nn.InstanceNorm2d(c_out, affine=True)
        self.conv3 = conv(c_in, c_out, (1, 1), stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        y = self.norm2(self.conv2(activated(self.norm1(self.conv1(x)))))
        return activated(y + self.conv3(x))


def conv(
    c_in: int, c_out: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1),
    *, bias: bool = True,
) -> nn.Conv2d:  # fmt: skip
    """A convolution that keeps the size up to its stride."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=bias)


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


def rising_rates(most: float, depths: tuple[int, ...]) -> list[list[float]]:
    """One rate per block of each stage, rising evenly from 0 at the first to `most` at the last.

    Plain numbers, so that a network can also be laid out on the meta device.

    Source: Huang et al., "Deep Networks with Stochastic Depth" (arXiv 1603.09382).
    """
    last = max(sum(depths) - 1, 1)
    rates = (most * i / last for i in range(sum(depths)))
    return [list(islice(rates, depth)) for depth in depths]
