"""UL-VM-UNet, base and v1 to v6: U-Nets with tens of thousands to a million parameters.

Source: Wu et al., "UltraLight VM-UNet" (arXiv 2403.20035), and the variants of "Mamba-Based Tumor
Segmentation" and "Mamba vs SOTA for Vision Tasks" (Crews and Whalen, 2024); reimplemented from the
published facts, with their parameter names. The variants differ in the numbers of channels
and parallel branches, and in the layers with pyramid pooling. Deviation: the parallel branches,
which share one Mamba, run as one batch instead of sequentially.

Shapes: B batch, C channels, H and W of the current level, P branches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from robustcli.models.ablation import Ablation, ablate_network
from robustcli.models.architectures import changed, check_multiple
from robustcli.models.blocks import PyramidPooling
from robustcli.models.mamba import Mamba

# The attention bridge over the skip connections of UltraLight VM-UNet. Source: Ruan et al.,
# "MALUNet" (arXiv 2211.01784), as used in UltraLight VM-UNet, with its parameter names.


class SpatialAttention(nn.Module):
    """A convolution of the mean and the maximum over the channels; shared by all maps."""

    def __init__(self) -> None:
        super().__init__()
        self.shared_conv2d = nn.Sequential(nn.Conv2d(2, 1, 7, padding=9, dilation=3), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Weights (B, 1, H, W) in [0, 1] for a map (B, C, H, W)."""
        summary = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
        weights: Tensor = self.shared_conv2d(summary)
        return weights


class ChannelAttention(nn.Module):
    """Weights of the channels of each map, computed from the channel means of all maps."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.get_all_att = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.widths = tuple(widths)
        for i, width in enumerate(widths, 1):
            self.add_module(f"att{i}", nn.Linear(sum(widths), width))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Weights (B, C_i, 1, 1) in [0, 1] for each of the maps (B, C_i, H_i, W_i)."""
        means = torch.cat([x.mean((2, 3)) for x in maps], 1)  # (B, sum C)
        context = self.get_all_att(means[:, None])[:, 0]
        return [
            torch.sigmoid(getattr(self, f"att{i}")(context))[..., None, None]
            for i in range(1, len(maps) + 1)
        ]


class SkipBridge(nn.Module):
    """Spatial, then channel attention on the skip maps, with residuals; keeps their shapes.

    Args:
        widths: Number of channels of each map, in the order in which they are passed.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.catt = ChannelAttention(widths)
        self.satt = SpatialAttention()

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The weighted maps."""
        placed = [self.satt(x) * x for x in maps]
        sums = [a + x for a, x in zip(placed, maps, strict=True)]
        weights = self.catt(sums)
        return [g * b + a for g, b, a in zip(weights, sums, placed, strict=True)]


_PVM_LAYERS = 3  # in the encoder and in the decoder; the other levels are convolutions


@dataclass(frozen=True)
class ULVMConfig:
    """Configuration of a UL-VM-UNet.

    `pyramid` are the names of the PVM layers with pyramid pooling of their input, e.g. `encoder6`.
    """

    widths: tuple[int, ...] = (8, 16, 24, 32, 48, 64)
    branches: int = 4
    pyramid: tuple[str, ...] = ()
    in_channels: int = 3
    num_classes: int = 1
    ablate: Ablation | None = None


class ParallelMamba(nn.Module):
    """PVM layer: one Mamba on each of P channel groups; maps (B, C, H, W) to (B, C', H, W)."""

    def __init__(self, c_in: int, c_out: int, *, branches: int, pyramid: bool) -> None:
        super().__init__()
        self.branches = branches
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.norm = nn.LayerNorm(c_in)
        self.mamba = Mamba(c_in // branches)
        self.proj = nn.Linear(c_in, c_out)
        if pyramid:
            self.ppm = PyramidPooling(c_in)

    def forward(self, x: Tensor) -> Tensor:
        """The output map; the same norm is applied before and after the Mamba."""
        if hasattr(self, "ppm"):
            x = self.ppm(x)
        B, _, H, W = x.shape
        tokens = self.norm(x.flatten(2).transpose(1, 2))  # (B, L, C)
        groups = tokens.unflatten(2, (self.branches, -1)).transpose(1, 2).flatten(0, 1)
        mixed = self.mamba(groups) + self.skip_scale * groups  # (B*P, L, C/P)
        joined = mixed.unflatten(0, (B, self.branches)).transpose(1, 2).flatten(2)  # (B, L, C)
        out: Tensor = self.proj(self.norm(joined)).transpose(1, 2)
        return out.reshape(B, -1, H, W)


class ULVMUNet(nn.Module):
    """UL-VM-UNet: maps images (B, 3, H, W) to probabilities (one class) or logits (several).

    Upstream applies a sigmoid to any number of classes, which are then not exclusive. Here several
    classes are exclusive: the caller applies a softmax to their logits (B, classes, H, W).
    """

    def __init__(self, config: ULVMConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        widths, self.levels = config.widths, len(config.widths)
        inputs = (config.in_channels, *widths)
        plain = self.levels - _PVM_LAYERS
        for i in range(1, self.levels + 1):
            self._add(f"encoder{i}", inputs[i - 1], inputs[i], pvm=i > plain)
        self.scab = SkipBridge(widths[:-1])
        for i in range(1, self.levels):
            self._add(f"decoder{i}", widths[-i], widths[-i - 1], pvm=i <= _PVM_LAYERS)
        for i in range(1, self.levels):
            self.add_module(f"ebn{i}", nn.GroupNorm(4, widths[i - 1]))
        for i in range(1, self.levels):
            self.add_module(f"dbn{i}", nn.GroupNorm(4, widths[-i - 1]))
        self.final = nn.Conv2d(widths[0], config.num_classes, 1)
        self.apply(_initialise)
        ablate_network(self, config.ablate, model="ulvm")

    def _add(self, name: str, c_in: int, c_out: int, *, pvm: bool) -> None:
        if not pvm:
            layer: nn.Module = nn.Conv2d(c_in, c_out, 3, 1, 1)
        else:
            pyramid = name in self.config.pyramid
            layer = ParallelMamba(c_in, c_out, branches=self.config.branches, pyramid=pyramid)
        self.add_module(name, nn.Sequential(layer))

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities (B, 1, H, W) for one class, or logits (B, classes, H, W) for several.

        Raises:
            UsageError: Height or width is not a multiple of the network's reduction.
        """
        step = 2 ** (self.levels - 1)
        check_multiple(x, (step, step))
        skips = []
        for i in range(1, self.levels):
            x = self._normed(f"encoder{i}", f"ebn{i}", x)
            x = F.gelu(F.max_pool2d(x, 2))
            skips.append(x)
        x = F.gelu(getattr(self, f"encoder{self.levels}")(x))
        bridged = self.scab(skips)
        for i in range(1, self.levels):
            x = self._normed(f"decoder{i}", f"dbn{i}", x)
            x = F.gelu(x if i == 1 else _twice(x)) + bridged[-i]
        logits = _twice(self.final(x))
        return torch.sigmoid(logits) if self.num_classes == 1 else logits

    def _normed(self, layer: str, norm: str, x: Tensor) -> Tensor:
        normed: Tensor = getattr(self, norm)(getattr(self, layer)(x))
        return normed


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


def _initialise(module: nn.Module) -> None:
    """Initialises as upstream, including the Mamba layers: their step-size bias becomes zero."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv1d):
        nn.init.normal_(
            module.weight, 0, math.sqrt(2 / (module.kernel_size[0] * module.out_channels))
        )
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
        assert module.bias is not None
        nn.init.zeros_(module.bias)


_FIVE = (16, 32, 64, 128, 256)
_WIDE = ULVMConfig(widths=(*_FIVE, 512), branches=8)
_PVM_OF_SIX = ("encoder4", "encoder5", "encoder6", "decoder1", "decoder2", "decoder3")
VARIANTS: dict[str, ULVMConfig] = {
    "ulvm": ULVMConfig(),
    "ulvm_v1": ULVMConfig(widths=_FIVE),
    "ulvm_v2": ULVMConfig(branches=8),
    "ulvm_v3": ULVMConfig(widths=_FIVE, branches=8),
    "ulvm_v4": replace(_WIDE, pyramid=_PVM_OF_SIX),
    "ulvm_v5": _WIDE,
    "ulvm_v6": replace(_WIDE, pyramid=("encoder6",)),
}


def build(variant: str, **changes: object) -> ULVMUNet:
    """Builds the network `variant` of VARIANTS with random weights; `changes` override its config.

    Raises:
        UsageError: An option is unknown.
    """
    return ULVMUNet(changed(VARIANTS[variant], changes, model=variant))
