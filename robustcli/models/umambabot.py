"""Smaller U-Mamba of the tumour paper, with or without pyramid pooling.

Source: "Mamba-Based Tumor Segmentation" (Crews and Whalen, 2024; `mamba-tumor-seg`); reimplemented
from the published facts, with its parameter names (`robustcli.models.umamba` removes the
duplicate names in its checkpoints). As in the source: one block per stage, norms without weights,
the output of the Mamba layer replaces the bottleneck map, and only the last of the four score
layers is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustcli.models.ablation import Ablation, ablate_network
from robustcli.models.architectures import changed, check_multiple
from robustcli.models.blocks import PyramidPooling
from robustcli.models.mamba import Mamba
from robustcli.models.resenc import ResEncConfig, ResidualEncoder, ResidualStage


@dataclass(frozen=True)
class UMambaBotConfig:
    """Channels of the stages, each at half the resolution of the previous, and pyramid pooling."""

    features: tuple[int, ...] = (32, 64, 128, 256, 512)
    pyramid: bool = False
    in_channels: int = 3
    num_classes: int = 1
    ablate: Ablation | None = None


class Decoder(nn.Module):
    """Decoder: maps the outputs of the encoder to logits at full resolution."""

    def __init__(self, config: UMambaBotConfig) -> None:
        super().__init__()
        pairs = list(zip(config.features[:0:-1], config.features[-2::-1], strict=True))
        self.stages = nn.ModuleList(
            ResidualStage(2 * c_out, c_out, (3, 3), (1, 1), 1, affine=False) for _, c_out in pairs
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
        dim, strides = config.features[-1], (1, *(2,) * (len(config.features) - 1))
        stages = ResEncConfig(
            in_channels=config.in_channels, features=config.features, strides=strides, n_blocks=1
        )
        self.encoder = ResidualEncoder(stages, affine=False)
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
