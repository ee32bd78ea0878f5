"""nnU-Net's residual-encoder U-Net in 2D, the network that nnU-Net's authors compare to U-Mamba.

Source: Isensee et al., "nnU-Net Revisited: A Call for Rigorous Validation in 3D Medical Image
Segmentation" (arXiv 2404.09556), whose results for U-Mamba without its Mamba layers are not worse,
and its network `ResidualEncoderUNet` in dynamic-network-architectures (MIC-DKFZ); reimplemented
from the published facts, with its parameter names. Upstream checkpoints store most tensors
under several names, see `robustcli.models.umamba.with_aliases`. Deviation: none in the function.

The encoder has stages of residual blocks; the first block of a stage downsamples by its stride. The
decoder upsamples by transposed convolutions, concatenates the encoder's map of the same size, and
applies plain convolutions. All norms are instance norms with weights, all activations leaky ReLU.

The size of `resenc` is a choice of this project: blocks per stage are those of nnU-Net's planner
(1, 3, 4, 6, 6, 6), and features are capped at 160 instead of 512, so that it has about as many
parameters as `umamba` (11.269 million and 11.258 million). Set `features` and `n_blocks` for
nnU-Net's sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustcli.models.architectures import changed, check_multiple
from robustcli.models.blocks import (
    BasicBlockD,
    ConvNorm,
    Pair,
    StagedConfig,
    StagedUNet,
    activated,
    each,
    scores_of,
)


@dataclass(frozen=True)
class ResEncConfig(StagedConfig):
    """A `StagedConfig` with the number of residual blocks of each encoder stage."""

    per_stage: ClassVar[tuple[str, ...]] = ("strides", "kernels", "n_blocks")

    features: tuple[int, ...] = (32, 64, 128, 160, 160, 160)
    strides: tuple[int | Pair, ...] = (1, 2, 2, 2, 2, 2)
    n_blocks: int | tuple[int, ...] = (1, 3, 4, 6, 6, 6)
    n_conv_decoder: int | tuple[int, ...] = 1


class ConvStack(nn.Module):
    """Convolutions with norm and activation; maps (B, C, H, W) to (B, C', H, W)."""

    def __init__(
        self, c_in: int, c_out: int, kernel: Pair, count: int, *, affine: bool = True
    ) -> None:
        super().__init__()
        pairs = pairwise((c_in, *(c_out,) * count))
        self.convs = nn.Sequential(*(ConvNorm(*pair, kernel, affine=affine) for pair in pairs))

    def forward(self, x: Tensor) -> Tensor:
        """The output of the last convolution with norm and activation."""
        for conv in self.convs:
            x = activated(conv(x))
        return x


class ResidualStage(nn.Module):
    """Residual blocks, the first with stride s; maps (B, C, H, W) to (B, C', H/s, W/s)."""

    def __init__(
        self, c_in: int, c_out: int, kernel: Pair, stride: Pair, count: int, *, affine: bool = True
    ) -> None:
        super().__init__()
        rest = (BasicBlockD(c_out, c_out, kernel, affine=affine) for _ in range(count - 1))
        self.blocks = nn.Sequential(BasicBlockD(c_in, c_out, kernel, stride, affine=affine), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the last block."""
        out: Tensor = self.blocks(x)
        return out


class ResidualEncoder(nn.Module):
    """Encoder: maps an image to one feature map per stage, highest resolution first.

    Args:
        config: Its stages are used.
        affine: Whether the norms have weights.
    """

    def __init__(self, config: ResEncConfig, *, affine: bool = True) -> None:
        super().__init__()
        widths, kernels = config.features, config.stage_kernels
        self.stem = ConvStack(config.in_channels, widths[0], kernels[0], 1, affine=affine)
        stages = zip(
            pairwise((widths[0], *widths)), kernels, config.stage_strides,
            each(config.n_blocks, len(widths)), strict=True,
        )  # fmt: skip
        self.stages = nn.ModuleList(
            ResidualStage(*pair, kernel, stride, count, affine=affine)
            for pair, kernel, stride, count in stages
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """The output of each stage, highest resolution first."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class ConvDecoder(nn.Module):
    """Decoder: maps encoder outputs to class scores; `deep_supervision` can be set at any time."""

    def __init__(self, config: ResEncConfig) -> None:
        super().__init__()
        self.deep_supervision = config.deep_supervision
        steps = list(pairwise(config.features[::-1]))
        kernels = config.stage_kernels[-2::-1]
        blocks = each(config.n_conv_decoder, len(steps))
        self.stages = nn.ModuleList(
            ConvStack(2 * narrow, narrow, kernel, count)
            for (_, narrow), kernel, count in zip(steps, kernels, blocks, strict=True)
        )
        self.transpconvs = nn.ModuleList(
            nn.ConvTranspose2d(*pair, stride, stride)
            for pair, stride in zip(steps, config.stage_strides[:0:-1], strict=True)
        )
        self.seg_layers = nn.ModuleList(
            nn.Conv2d(narrow, config.num_classes, 1) for _, narrow in steps
        )

    def forward(self, maps: list[Tensor]) -> Tensor | list[Tensor]:
        """Scores (B, classes, H, W); with deep supervision a list, highest resolution first."""
        x, outputs = maps[-1], []
        last = len(self.stages) - 1
        for d, (enlarge, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            x = stage(torch.cat((enlarge(x), maps[-2 - d]), 1))
            if self.deep_supervision or d == last:
                outputs.append(self.seg_layers[d](x))
        return scores_of(outputs, deep_supervision=self.deep_supervision)


class ResEncUNet(StagedUNet):
    """Residual-encoder U-Net: maps images (B, C, H, W) to class scores (before softmax)."""

    config: ResEncConfig

    def __init__(self, config: ResEncConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.encoder = ResidualEncoder(config)
        self.decoder = ConvDecoder(config)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Scores (B, classes, H, W); with deep supervision a list, highest resolution first.

        Raises:
            UsageError: Height or width is not a multiple of the network's reduction.
        """
        check_multiple(x, self.config.reductions[-1])
        scores: Tensor | list[Tensor] = self.decoder(self.encoder(x))
        return scores


def _initialise(module: nn.Module) -> None:
    """Initialises as upstream: each residual block initially returns its (activated) shortcut."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, BasicBlockD):
        nn.init.zeros_(module.conv2.norm.weight)
        nn.init.zeros_(module.conv2.norm.bias)


VARIANTS: dict[str, ResEncConfig] = {"resenc": ResEncConfig()}


def build(variant: str, **changes: object) -> ResEncUNet:
    """Builds the network `variant` of VARIANTS with random weights; `changes` override its config.

    Raises:
        UsageError: An option is unknown, or options per stage have the wrong length.
    """
    return ResEncUNet(changed(VARIANTS[variant], changes, model=variant))
