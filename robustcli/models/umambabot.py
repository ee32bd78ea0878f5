"""Smaller U-Mamba of the tumour paper, with or without pyramid pooling.

Source: "Mamba-Based Tumor Segmentation" (Crews and Whalen, 2024; `mamba-tumor-seg`); reimplemented
from the published facts, with its parameter names (`robustcli.models.umamba` removes the
duplicate names in its checkpoints). As in the source: one block per stage, norms without weights,
the output of the Mamba layer replaces the bottleneck map, and only the last of the four score
layers is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from robustcli.models.ablation import Ablation, ablate_network
from robustcli.models.architectures import changed, check_multiple
from robustcli.models.blocks import BasicBlockD, ConvNorm, PyramidPooling, activated
from robustcli.models.mamba import Mamba


@dataclass(frozen=True)
class UMambaBotConfig:
    """Channels of the stages, each at half the resolution of the previous, and pyramid pooling."""

    features: tuple[int, ...] = (32, 64, 128, 256, 512)
    pyramid: bool = False
    in_channels: int = 3
    num_classes: int = 1
    ablate: Ablation | None = None


class Blocks(nn.Module):
    """A stage with one block."""

    def __init__(self, block: BasicBlockD) -> None:
        super().__init__()
        self.blocks = nn.Sequential(block)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C', H', W')."""
        out: Tensor = self.blocks(x)
        return out


class Stem(nn.Module):
    """Convolution, norm and activation; maps (B, 3, H, W) to (B, C, H, W)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvNorm(c_in, c_out, (3, 3), affine=False))

    def forward(self, x: Tensor) -> Tensor:
        """The first feature map, (B, C, H, W)."""
        return activated(self.convs(x))


class Encoder(nn.Module):
    """Encoder: maps an image to one feature map per stage, highest resolution first."""

    def __init__(self, config: UMambaBotConfig) -> None:
        super().__init__()
        widths = config.features
        self.stem = Stem(config.in_channels, widths[0])
        stages = [Blocks(BasicBlockD(widths[0], widths[0], affine=False))]
        for c_in, c_out in pairwise(widths):
            stages.append(Blocks(BasicBlockD(c_in, c_out, stride=(2, 2), affine=False)))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The output of each stage, highest resolution first."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """Decoder: maps the outputs of the encoder to logits at full resolution."""

    def __init__(self, config: UMambaBotConfig) -> None:
        super().__init__()
        pairs = list(zip(config.features[:0:-1], config.features[-2::-1], strict=True))
        self.stages = nn.ModuleList(
            Blocks(BasicBlockD(2 * c_out, c_out, affine=False)) for _, c_out in pairs
        )
        self.transpconvs = nn.ModuleList(nn.ConvTranspose2d(*pair, 2, 2) for pair in pairs)
        self.seg_layers = nn.ModuleList(nn.Conv2d(c, config.num_classes, 1) for _, c in pairs)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits (B, classes, H, W)."""
        x = maps[-1]
        for up, stage, skip in zip(self.transpconvs, self.stages, maps[-2::-1], strict=True):
            x = stage(torch.cat((up(x), skip), 1))
        logits: Tensor = self.seg_layers[-1](x)
        return logits


class UMambaBot(nn.Module):
    """Smaller U-Mamba: maps images (B, 3, H, W) to logits (B, classes, H, W)."""

    def __init__(self, config: UMambaBotConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        dim = config.features[-1]
        self.encoder = Encoder(config)
        if config.pyramid:
            self.ppm = PyramidPooling(dim)
        self.ln = nn.LayerNorm(dim)
        self.mamba = Mamba(dim)
        self.decoder = Decoder(config)
        ablate_network(self, config.ablate, model="umambabot")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes, H, W).

        Raises:
            UsageError: Height or width is not a multiple of the network's reduction.
        """
        step = 2 ** (len(self.config.features) - 1)
        check_multiple(x, (step, step))
        maps = self.encoder(x)
        deepest = self.ppm(maps[-1]) if self.config.pyramid else maps[-1]
        tokens = deepest.flatten(2).transpose(1, 2)  # (B, L, C)
        maps[-1] = self.mamba(self.ln(tokens)).transpose(1, 2).reshape(deepest.shape)
        logits: Tensor = self.decoder(maps)
        return logits


VARIANTS: dict[str, UMambaBotConfig] = {
    "umambabot": UMambaBotConfig(),
    "umambabot_pp": replace(UMambaBotConfig(), pyramid=True),
}


def build(variant: str, **changes: object) -> UMambaBot:
    """Builds the network `variant` of VARIANTS with random weights; `changes` override its config.

    Raises:
        UsageError: An option is unknown.
    """
    return UMambaBot(changed(VARIANTS[variant], changes, model=variant))
