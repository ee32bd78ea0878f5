"""SegFormer of the tumour paper: about MiT-B2 with an all-MLP decoder; outputs logits at H/4.

Source: Xie et al., "SegFormer" (arXiv 2105.15203), in the form of "Mamba-Based Tumor Segmentation"
(Crews and Whalen, 2024; `mamba-tumor-seg`); reimplemented from the published facts, with its
parameter names. As in that code, and unlike the original: keys and values are reduced by a
convolution even if the ratio is 1, the mixing MLP starts with a 1x1 convolution that keeps the
number of channels, the decoder upsamples before it projects, and the head applies the activation
before the norm.
Deviation: an input whose size is not a multiple of 32 is rejected with a message; upstream fails
inside the network.

Shapes: B batch, C channels, H and W of the current stage, L = H * W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor, nn

from robustcli.models.architectures import changed, check_multiple


@dataclass(frozen=True)
class SegFormerConfig:
    """Sizes of a SegFormer; tuples have one entry per stage.

    `patches` and `strides` are kernel size and stride of the first convolution of a stage.
    `reductions` is the factor along each side by which attention has fewer keys than queries.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    patches: tuple[int, ...] = (7, 3, 3, 3)
    strides: tuple[int, ...] = (4, 2, 2, 2)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    expansion: int = 4
    decoder: int = 256
    in_channels: int = 3
    num_classes: int = 1


class MapNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """The normalised map, (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Attention from all pixels to a reduced map; maps (B, C, H, W) to the same shape."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.reducer = nn.Sequential(nn.Conv2d(dim, dim, reduction, reduction), MapNorm(dim))
        self.att = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the attention, (B, C, H, W)."""
        queries, keys = (m.flatten(2).transpose(1, 2) for m in (x, self.reducer(x)))  # (B, L, C)
        mixed: Tensor = self.att(queries, keys, keys, need_weights=False)[0]
        return mixed.transpose(1, 2).reshape(x.shape)


class Residual(nn.Module):
    """Residual branch: `x + fn(x)`, where `fn` is the sequence of `layers`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.fn = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape."""
        added: Tensor = x + self.fn(x)
        return added


class Stage(nn.Module):
    """Patch embedding, blocks and norm; maps (B, C, H, W) to (B, C', H/stride, W/stride)."""

    def __init__(self, config: SegFormerConfig, number: int) -> None:
        super().__init__()
        c_in = (config.in_channels, *config.widths)[number]
        dim, patch = config.widths[number], config.patches[number]
        stride = config.strides[number]
        self.overlap_patch_merge = nn.Sequential(
            nn.Conv2d(c_in, dim, patch, stride, patch // 2, bias=False), MapNorm(dim)
        )
        attends = config.heads[number], config.reductions[number]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    Residual(MapNorm(dim), Attention(dim, *attends)),
                    Residual(MapNorm(dim), _mixing(dim, config.expansion)),
                )
                for _ in range(config.depths[number])
            )
        )
        self.norm = MapNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the stage, (B, C', H/stride, W/stride)."""
        out: Tensor = self.norm(self.blocks(self.overlap_patch_merge(x)))
        return out


class Encoder(nn.Module):
    """Encoder: maps an image to one feature map per stage, highest resolution first."""

    def __init__(self, config: SegFormerConfig) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage(config, i) for i in range(len(config.widths)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The output of each stage, highest resolution first."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """Resizes all maps to the first, projects them to equal channels, concatenates them."""

    def __init__(self, config: SegFormerConfig) -> None:
        super().__init__()
        factors = list(accumulate(config.strides[1:], mul, initial=1))
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=True),
                nn.Conv2d(width, config.decoder, 1),
            )
            for width, factor in zip(config.widths[::-1], factors[::-1], strict=True)
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The concatenated maps, deepest first, (B, decoder * stages, H/4, W/4)."""
        pairs = zip(self.stages, maps[::-1], strict=True)
        return torch.cat([stage(x) for stage, x in pairs], 1)


class Head(nn.Module):
    """Fuses the maps of the decoder and computes the scores of each pixel."""

    def __init__(self, config: SegFormerConfig) -> None:
        super().__init__()
        joined, width = config.decoder * len(config.widths), config.decoder
        self.fuse = nn.Sequential(
            nn.Conv2d(joined, width, 1, bias=False), nn.ReLU(), nn.BatchNorm2d(width)
        )
        self.predict = nn.Conv2d(width, config.num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes, H/4, W/4)."""
        logits: Tensor = self.predict(self.fuse(x))
        return logits


class SegFormer(nn.Module):
    """SegFormer: maps images (B, 3, H, W) to logits (B, classes, H/4, W/4)."""

    def __init__(self, config: SegFormerConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.encoder, self.decoder, self.head = Encoder(config), Decoder(config), Head(config)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes, H/4, W/4).

        Raises:
            UsageError: Height or width is not a multiple of the network's reduction.
        """
        step = math.prod(self.config.strides)
        check_multiple(x, (step, step))
        logits: Tensor = self.head(self.decoder(self.encoder(x)))
        return logits


def _mixing(dim: int, expansion: int) -> nn.Sequential:
    """The mixing MLP: 1x1 convolution, 3x3 depthwise convolution with GELU, 1x1 convolution."""
    wide = expansion * dim
    return nn.Sequential(
        nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, wide, 3, padding=1, groups=dim), nn.GELU(),
        nn.Conv2d(wide, dim, 1),
    )  # fmt: skip


VARIANTS: dict[str, SegFormerConfig] = {"segformer": SegFormerConfig()}


def build(variant: str, **changes: object) -> SegFormer:
    """Builds the network `variant` of VARIANTS with random weights; `changes` override its config.

    Raises:
        UsageError: An option is unknown.
    """
    return SegFormer(changed(VARIANTS[variant], changes, model=variant))
