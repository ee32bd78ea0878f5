"""Parts that several networks share.

Residual convolutions, pyramid pooling, stochastic depth, and the configuration of the stages of a
U-shaped network, as in an nnU-Net plan.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.core.errors import UsageError

# The convolution blocks of nnU-Net's residual networks, used by both U-Mambas. Source:
# dynamic-network-architectures (MIC-DKFZ); reimplemented from the published facts, with the
# same parameter names. That package registers each convolution and norm twice, this module once
# (`robustcli.models.umamba` converts checkpoints).


def activated(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 0.01, in place: nothing else uses the output of the norm."""
    return F.leaky_relu(x, 0.01, inplace=True)


class ConvNorm(nn.Module):
    """A convolution followed by an instance norm without running statistics."""

    def __init__(
        self, c_in: int, c_out: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1),
        *, bias: bool = True, affine: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = conv(c_in, c_out, kernel, stride, bias=bias)
        self.norm = nn.InstanceNorm2d(c_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C', H', W')."""
        normed: Tensor = self.norm(self.conv(x))
        return normed


class BasicBlockD(nn.Module):
    """Residual block of two convolutions; maps (B, C, H, W) to (B, C', H', W').

    The shortcut is the identity if the shape does not change. Else it consists of average pooling,
    if the stride is not 1, and a 1x1 convolution without bias with a norm, if the number of
    channels changes.
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
        """The output of the block, (B, C', H', W')."""
        return activated(self.conv2(activated(self.conv1(x))) + self.skip(x))


class BasicResBlock(nn.Module):
    """Residual block of U-Mamba; the shortcut is always a 1x1 convolution without norm."""

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
        """Maps (B, C, H, W) to (B, C', H', W')."""
        y = self.norm2(self.conv2(activated(self.norm1(self.conv1(x)))))
        return activated(y + self.conv3(x))


def conv(
    c_in: int, c_out: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1),
    *, bias: bool = True,
) -> nn.Conv2d:  # fmt: skip
    """A convolution whose padding keeps height and width if the stride is 1."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=bias)


SIZES = (1, 2, 3, 6)
SHARES = (8, 4, 2, 8)
"""Divisor of the channels for each of `SIZES`: 1/8, 1/4, 1/2 and 1/8 of the channels."""


class PyramidPooling(nn.Module):
    """Average pools of four sizes, each projected, upsampled and concatenated.

    Unlike in PSPNet, the input is not concatenated, so no detail finer than 6 x 6 is passed on.
    Source: `mamba-tumor-seg` (2024), with its parameter names.

    Args:
        channels: Number of input and output channels, a multiple of 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        convs = (nn.Conv2d(channels, channels // share, 1) for share in SHARES)
        self.conv_layers = nn.ModuleList(convs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape."""
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
    """Stochastic-depth rate of each block by stage, linear from 0 (first) to `most` (last block).

    Returns floats, not tensors, so that a network can also be built on the meta device.

    Source: Huang et al., "Deep Networks with Stochastic Depth" (arXiv 1603.09382).
    """
    last = max(sum(depths) - 1, 1)
    rates = (most * i / last for i in range(sum(depths)))
    return [list(islice(rates, depth)) for depth in depths]


# Configuration of the stages of a U-shaped network, as in the plans of nnU-Net v2 (Isensee et al.,
# Nature Methods 2021). U-Mamba and nnU-Net's residual-encoder U-Net are built from it.

Pair = tuple[int, int]


@dataclass(frozen=True)
class StagedConfig:
    """Stages of the encoder, highest resolution first; the decoder has them in reverse order.

    `features` and `strides` have one entry per stage. `kernels` has one entry per stage or is one
    value for all stages. `n_conv_decoder` has one entry less or is one value.
    """

    per_stage: ClassVar[tuple[str, ...]] = ("strides", "kernels")
    """Fields with one entry per stage."""

    in_channels: int = 3
    num_classes: int = 2
    features: tuple[int, ...] = (32, 64, 128, 256, 512)
    strides: tuple[int | Pair, ...] = (1, 2, 2, 2, 2)
    kernels: int | tuple[int | Pair, ...] = 3
    n_conv_decoder: int | tuple[int, ...] = 2
    patch_size: int | Pair = (256, 256)
    deep_supervision: bool = False

    def __post_init__(self) -> None:
        stages = len(self.features)
        counts = dict.fromkeys(self.per_stage, stages) | {"n_conv_decoder": stages - 1}
        for name, count in counts.items():
            value = getattr(self, name)
            if not isinstance(value, int) and len(value) != count:
                raise UsageError(
                    f"`{name}` has {len(value)} entries.",
                    f"`features` has {stages} stages, so {count} are expected.",
                )

    @property
    def patch(self) -> Pair:
        """Height and width of the patch of the plan."""
        return as_pair(self.patch_size)

    @property
    def stage_strides(self) -> tuple[Pair, ...]:
        """The stride of the first convolution of each stage."""
        return tuple(map(as_pair, self.strides))

    @property
    def stage_kernels(self) -> tuple[Pair, ...]:
        """The kernel size of the convolutions of each stage."""
        return tuple(map(as_pair, each(self.kernels, len(self.features))))

    @property
    def reductions(self) -> tuple[Pair, ...]:
        """Downsampling factors (height, width) from the input to the map of each stage."""
        return tuple(accumulate(self.stage_strides, lambda a, b: (a[0] * b[0], a[1] * b[1])))

    @property
    def square(self) -> int:
        """Side in pixels of the largest square within the patch that the network supports.

        For a patch of 40 x 224 with strides up to 32, it is 32.
        """
        step = math.lcm(*self.reductions[-1])
        return max(step, min(self.patch) // step * step)

    @property
    def bound_to_patch(self) -> bool:
        """Whether some weights depend on the patch size, so that the input must have this size."""
        return False


class SupervisedSegmenter(nn.Module, ABC):
    """Base class of segmenters with deep supervision: maps images (B, C, H, W) to class scores."""

    @abstractmethod
    def supervise_deeply(self) -> None:
        """Enables deep supervision: outputs become lists, highest resolution first."""


class StagedUNet(SupervisedSegmenter):
    """Base class of segmenters with a `StagedConfig`: maps images (B, C, H, W) to class scores."""

    config: StagedConfig

    def supervise_deeply(self) -> None:
        """See `SupervisedSegmenter`."""
        decoder: Any = self.decoder
        decoder.deep_supervision = True


def scores_of(outputs: list[Tensor], *, deep_supervision: bool) -> Tensor | list[Tensor]:
    """Decoder output: with deep supervision all `outputs` in reverse order, else the only one."""
    return outputs[::-1] if deep_supervision else outputs[0]


def as_pair(value: int | Pair) -> Pair:
    """`value` as a pair: an int is repeated for both axes."""
    return (value, value) if isinstance(value, int) else value


def each(value: Any, count: int) -> tuple[Any, ...]:
    """`value` as a tuple per stage: an int is repeated `count` times."""
    return (value,) * count if isinstance(value, int) else tuple(value)
